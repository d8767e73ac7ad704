#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Builds the Debian package virtio-scsi-fc-dkms into a directory: ./package.sh DIRECTORY
set -eu
cd "$(dirname "$0")"
out=$(realpath "$1")
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)
grep -q "MODULE_VERSION(\"$version\")" main.c || { echo "main.c has another version than dkms.conf" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
source=usr/src/virtio-scsi-fc-$version
# Files have the modes that they are to have, whatever the umask is and the checkout has.
put() { install -D -m "$1" "$2" "$root/$3"; }
for file in *.c *.h Kbuild Makefile dkms.conf; do put 644 "$file" "$source/$file"; done
put 644 modprobe.conf usr/lib/modprobe.d/virtio-scsi-fc.conf
put 644 LICENSE usr/share/doc/virtio-scsi-fc-dkms/copyright
mkdir -p "$root/usr/share/initramfs-tools/modules.d" "$root/DEBIAN"
# The disk with the root file system may be behind it.
echo virtio_scsi_fc > "$root/usr/share/initramfs-tools/modules.d/virtio-scsi-fc"
cat > "$root/DEBIAN/control" <<END
Package: virtio-scsi-fc-dkms
Version: $version
Architecture: all
Maintainer: The vmm developers <vmm@localhost>
Section: kernel
Priority: optional
Depends: dkms (>= 2.1), make
Recommends: linux-headers-amd64 | linux-headers-generic
Description: virtio-scsi driver with a port on a Fibre Channel fabric
 Source of the kernel module virtio_scsi_fc, built by DKMS for each kernel. It drives
 virtio-scsi adapters of the vmm with a port of their own on a fabric, which it shows
 as fc_host and fc_remote_ports, and other virtio-scsi adapters as virtio_scsi does.
END
cat > "$root/DEBIAN/postinst" <<END
#!/bin/sh
set -e
if [ "\$1" = configure ]; then
    dkms remove -m virtio-scsi-fc -v $version --all >/dev/null 2>&1 || true
    dkms add -m virtio-scsi-fc -v $version
    for headers in /lib/modules/*/build; do
        kernel=\${headers%/build}
        kernel=\${kernel##*/}
        [ -e "\$headers" ] || continue
        dkms install -m virtio-scsi-fc -v $version -k "\$kernel" ||
            echo "virtio-scsi-fc: not built for Linux \$kernel (6.1 or newer is needed); 'dkms install virtio-scsi-fc/$version -k \$kernel' tries again" >&2
    done
    if command -v update-initramfs >/dev/null; then update-initramfs -u -k all || true; fi
fi
END
cat > "$root/DEBIAN/prerm" <<END
#!/bin/sh
set -e
case "\$1" in
    remove | upgrade | deconfigure) dkms remove -m virtio-scsi-fc -v $version --all || true ;;
esac
END
cat > "$root/DEBIAN/postrm" <<END
#!/bin/sh
set -e
if [ "\$1" = remove ] && command -v update-initramfs >/dev/null; then update-initramfs -u -k all || true; fi
END
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
dpkg-deb --build --root-owner-group "$root" "$out/virtio-scsi-fc-dkms_${version}_all.deb"
