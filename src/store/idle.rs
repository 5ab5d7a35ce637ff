//! Work that must not be noticed: threads that run when nothing else wants the processor or the
//! disk, and when a machine has better things to do.

#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

/// The scheduling class of ioprio_set(2) that gets the disk only when it is idle, and where the
/// class is in its argument.
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// The share of the last ten seconds in which all tasks waited for the disk, or some for memory,
/// in percent: above it, nothing is packed.
const MAX_IO_PRESSURE: f64 = 25.0;
const MAX_MEMORY_PRESSURE: f64 = 10.0;

/// Let the calling thread run only when nothing else wants the processor or the disk. Threads that
/// it starts inherit this.
pub(super) fn make_idle() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call, and 0 is the calling thread.
    let scheduled = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    let idle = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: the call takes three numbers; 0 is the calling thread.
    let prioritized = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, idle) };
    if scheduled != 0 || prioritized != 0 {
        log::debug!("packing has the priority of other work: {}", std::io::Error::last_os_error());
    }
}

/// Why now is not the time for idle work; `None` if it is.
pub(super) fn why_busy() -> Option<String> {
    let pressure = |what: &str, line: &str| {
        let text = fs::read_to_string(format!("/proc/pressure/{what}")).ok()?;
        share(&text, line)
    };
    if pressure("io", "full").is_some_and(|share| share > MAX_IO_PRESSURE) {
        return Some("the disk is busy".into());
    }
    if pressure("memory", "some").is_some_and(|share| share > MAX_MEMORY_PRESSURE) {
        return Some("memory is short".into());
    }
    on_battery(Path::new("/sys/class/power_supply")).then(|| "the machine runs on battery".into())
}

/// The average over ten seconds in a line of a file of /proc/pressure, in percent.
fn share(text: &str, line: &str) -> Option<f64> {
    let line = text.lines().find_map(|l| l.strip_prefix(line))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// Whether the machine has mains supplies, and none is connected.
fn on_battery(supplies: &Path) -> bool {
    let read = |path: &Path, file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let supplies = fs::read_dir(supplies).into_iter().flatten().flatten();
    let mains: Vec<bool> = supplies
        .map(|supply| supply.path())
        .filter(|path| read(path, "type").trim() == "Mains")
        .map(|path| read(&path, "online").trim() == "1")
        .collect();
    !mains.is_empty() && !mains.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_the_right_line() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=123\nfull avg10=0.25 avg60=0.00 \
                    avg300=0.00 total=7\n";
        assert_eq!((share(text, "some"), share(text, "full")), (Some(12.5), Some(0.25)));
        assert_eq!(share("rubbish", "some"), None);
    }

    #[test]
    fn only_a_machine_without_mains_runs_on_battery() {
        let dir = tempfile::tempdir().expect("a directory");
        let supply = |name: &str, kind: &str, online: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("mkdir");
            fs::write(path.join("type"), kind).expect("write");
            fs::write(path.join("online"), online).expect("write");
        };
        assert!(!on_battery(dir.path()), "a desktop has no supplies");
        supply("BAT0", "Battery\n", "1\n");
        assert!(!on_battery(dir.path()));
        supply("AC", "Mains\n", "0\n");
        assert!(on_battery(dir.path()));
        supply("AC", "Mains\n", "1\n");
        assert!(!on_battery(dir.path()));
    }
}
