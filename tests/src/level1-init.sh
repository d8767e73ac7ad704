#!/bin/sh
# The first process of level 1: makes the machine's own file system, shared read-only, its root.
# Words of the kernel command line: testbed.program= is the test bed's own file, testbed.kernel= the folder
# with lib/modules, testbed.kmod= the command that is kmod, with colons for spaces.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "$module" || echo "cannot load $module"
done < /modules
for word in $(cat /proc/cmdline); do
    case $word in
        testbed.program=*) program=${word#*=} ;;
        testbed.kernel=*) kernel=${word#*=} ;;
        testbed.kmod=*) kmod=$(echo "${word#*=}" | tr : ' ') ;;
    esac
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro root /root || poweroff -f
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/testbed/bin /root/run/testbed/tmp /root/run/testbed/scratch /root/run/testbed/out /root/run/lock
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t xfs -o noatime /dev/vda /root/run/testbed/scratch || poweroff -f
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /root/run/testbed/out
ip link set lo up

# The kernel's own requests for modules, and modprobe by hand, find the modules of this kernel.
cat > /root/run/testbed/bin/modprobe <<END
#!/bin/sh
exec $kmod -d $kernel "\$@"
END
chmod 755 /root/run/testbed/bin/modprobe
echo /run/testbed/bin/modprobe > /proc/sys/kernel/modprobe
# A copy: the file itself may be built anew while this machine runs.
cp "/root$program" /root/run/testbed/bin/testbed
cp /bin/busybox /root/run/testbed/bin/busybox
for mount in proc sys dev; do
    mount -o move /$mount /root/$mount
done
export PATH=/run/testbed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export TMPDIR=/run/testbed/tmp HOME=/run/testbed/tmp TERM=dumb LC_ALL=C
cat > /root/run/testbed/start <<'END'
#!/bin/sh
cd /run/testbed
modprobe kvm_amd || modprobe kvm_intel
# Nothing loads it on demand, as nothing makes its device node.
modprobe loop
exec /run/testbed/bin/testbed agent --port testbed
END
exec switch_root /root /bin/sh /run/testbed/start
