#!/bin/sh
# Prints what a machine without Python says about itself, in the form in which `tail -n +1 FILES` prints files, for
# probes.py on the other side to read. Needs a POSIX shell and cat. On Android also what its services tell.
show() { [ -r "$1" ] || return; text=$(cat "$1" 2>/dev/null) || return; printf "==> %s <==\n%s\n\n" "$1" "$text"; }
say() { name=$1; shift; text=$("$@" 2>/dev/null </dev/null) || return; printf "==> /usr/bin/%s <==\n%s\n\n" "$name" "$text"; }

for f in /proc/cpuinfo /proc/loadavg /proc/meminfo /sys/devices/system/cpu/cpu[0-9]*/cpu_capacity \
  /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list /sys/class/thermal/thermal_zone*/type \
  /sys/class/thermal/thermal_zone*/temp /sys/class/thermal/cooling_device*/type \
  /sys/class/thermal/cooling_device*/cur_state; do show "$f"; done
for d in /sys/devices/system/cpu/cpufreq/policy* /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  for f in related_cpus affected_cpus scaling_governor scaling_cur_freq cpuinfo_min_freq cpuinfo_max_freq \
    scaling_max_freq; do show "$d/$f"; done
done
# The kernel ends the board's name with a zero byte.
[ -r /proc/device-tree/model ] && printf "==> /proc/device-tree/model <==\n%s\n\n" "$(tr -d "\0" < /proc/device-tree/model)"
say "uname -m" uname -m
say "uname -r" uname -r
say "vcgencmd get_throttled" vcgencmd get_throttled
say "vcgencmd measure_clock arm" vcgencmd measure_clock arm
if command -v getprop >/dev/null 2>&1; then
  say "getprop ro.product.manufacturer" getprop ro.product.manufacturer
  say "getprop ro.product.model" getprop ro.product.model
  say "getprop ro.build.version.release" getprop ro.build.version.release
  say "dumpsys battery" dumpsys battery
  say "dumpsys thermalservice" dumpsys thermalservice
  say "settings get global low_power" settings get global low_power
fi
echo "==> the end <=="
