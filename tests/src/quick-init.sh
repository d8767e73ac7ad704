#!/bin/sh
# The first process of the quick initramfs: loads the modules, then runs /script, or a shell without one.
# Words of the kernel command line: testbed.end=poweroff|reboot|crash|stay says what follows the script.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    # Parameters are words NAME.PARAMETER of the command line, as those of what is built in.
    name=$(basename "${module%%.ko*}" | tr - _)
    parameters=
    for word in $(cat /proc/cmdline); do
        case $word in "$name".*) parameters="$parameters ${word#*.}" ;; esac
    done
    insmod "$module" $parameters || echo "TESTBED cannot load $module"
done < /modules

# Disks appear in their own time: wait until nothing new has appeared for a moment.
known=-1
found=$(ls -d /sys/class/scsi_host/* /sys/class/scsi_device/* /sys/block/s* 2>/dev/null | wc -l)
while [ "$found" != "$known" ]; do
    sleep 0.5
    known=$found
    found=$(ls -d /sys/class/scsi_host/* /sys/class/scsi_device/* /sys/block/s* 2>/dev/null | wc -l)
done
# The kernel names disks in the order in which it happens to find them: /dev/at/H:C:T:L tells them apart.
mkdir /dev/at
for device in /sys/class/scsi_device/*; do
    for block in $device/device/block/*; do
        [ -e "$block" ] && ln -s "/dev/${block##*/}" "/dev/at/${device##*/}"
    done
done

# What the kernel says is in dmesg, for the script to show. On the console it would come between the script's own lines.
dmesg -n 1
echo "TESTBED READY"
if [ -x /script ]; then
    sh /script
    echo "TESTBED EXIT $?"
else
    setsid cttyhack sh
fi
end=poweroff
for word in $(cat /proc/cmdline); do
    case $word in testbed.end=*) end=${word#testbed.end=} ;; esac
done
sync
case $end in
    reboot) reboot -f ;;
    crash) echo c > /proc/sysrq-trigger ;;
    stay) while :; do sleep 1000; done ;;
    *) poweroff -f ;;
esac
