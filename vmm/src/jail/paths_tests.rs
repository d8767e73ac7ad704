use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

use landlock::AccessFs::*;
use tempfile::TempDir;

use super::*;
use crate::config::Host;

/// A directory with what configurations name.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        for directory in ["boot", "run", "images", "images/below", "bases", "other"] {
            fs::create_dir(place.path(directory)).unwrap();
        }
        for file in [
            "boot/kernel",
            "boot/initrd",
            "a.img",
            "b.img",
            "c.img",
            "images/i.img",
            "images/below/j.img",
            "bases/base.img",
            "other/o.img",
        ] {
            fs::write(place.path(file), [1; 4096]).unwrap();
        }
        std::os::unix::fs::symlink("boot/kernel", place.path("kernel")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap().join(name)
    }

    /// A machine with a disk that it writes and one that it reads.
    fn config(&self, more: &str) -> Config {
        let text = format!(
            "[vm]\nmemory = \"64MiB\"\n[boot]\nkernel = \"kernel\"\n[[hba]]\n[[hba.lun]]\nimage = \"a.img\"\n\
             [[hba.lun]]\nimage = \"b.img\"\nreadonly = true\n{more}"
        );
        config::parse(&text, &self.path("vm.toml"), &[], &Host::default()).unwrap()
    }

    fn open(&self, name: &str, write: bool) -> Option<io::ErrorKind> {
        OpenOptions::new().read(true).write(write).open(self.path(name)).err().map(|error| error.kind())
    }
}

const CONTROL: &str = "[control]\npath = \"run/control\"\n";
const WHOLE: &str = "[control]\npath = \"run/control\"\n[serial]\nmode = \"socket\"\npath = \"run/console\"\n\
                     [security]\ndirectories = [\"images\"]\nreadonly_directories = [\"bases\"]\n";

#[test]
fn what_a_machine_opens_by_path_is_listed() {
    let place = Place::new();
    let listed = |more: &str| -> Vec<(PathBuf, Rights)> {
        rules(&place.config(more)).into_iter().map(|rule| (rule.path, rule.rights)).collect()
    };
    let boot = (place.path("boot"), BOOT);
    assert_eq!(listed(""), std::slice::from_ref(&boot), "nothing comes and nothing changes");
    assert_eq!(
        listed("[security]\ndirectories = [\"images\"]\n[serial]\nmode = \"pty\"\npath = \"run/console\"\n"),
        [boot.clone(), (place.path("run"), NAMES)]
    );
    let kernel = [
        ("/sys/devices".into(), LOOK),
        ("/sys/block".into(), LIST),
        ("/proc/self".into(), LOOK),
        ("/proc/swaps".into(), BOOT),
        ("/proc/locks".into(), BOOT),
    ];
    let images = [(place.path("a.img"), WRITABLE), (place.path("b.img"), READABLE)];
    let expected = |middle: &[(PathBuf, Rights)]| {
        [&[boot.clone(), (place.path("run"), NAMES)], middle, &images, &kernel[..]].concat()
    };
    assert_eq!(listed(CONTROL), expected(&[]));
    assert_eq!(
        listed(WHOLE),
        expected(&[(place.path("images"), IMAGES), (place.path("bases"), READABLE_IMAGES)])
    );
}

/// What each right is, apart from the names that the rules give them.
#[test]
fn rights_are_these_and_no_more() {
    for (rights, expected) in [
        (IMAGES, &[ReadFile, WriteFile, ReadDir, Truncate, IoctlDev, MakeReg][..]),
        (READABLE_IMAGES, &[ReadFile, ReadDir, IoctlDev]),
        (WRITABLE, &[ReadFile, WriteFile, Truncate, IoctlDev]),
        (READABLE, &[ReadFile, IoctlDev]),
        (BOOT, &[ReadFile]),
        (LOOK, &[ReadFile, ReadDir]),
        (LIST, &[ReadDir]),
        (NAMES, &[RemoveFile]),
    ] {
        assert_eq!(rights.iter().collect::<Vec<_>>().len(), expected.len(), "{rights:?}");
        assert!(expected.iter().all(|right| rights.contains(*right)), "{rights:?}");
    }
}

/// A rule about a file keeps its room on the disk, so there is none where the file can be opened anyway.
#[test]
fn images_in_directories_that_are_named_have_no_rules_of_their_own() {
    let place = Place::new();
    fs::rename(place.path("a.img"), place.path("images/below/a.img")).unwrap();
    std::os::unix::fs::symlink("images/below/a.img", place.path("a.img")).unwrap();
    fs::rename(place.path("b.img"), place.path("bases/b.img")).unwrap();
    std::os::unix::fs::symlink("bases/b.img", place.path("b.img")).unwrap();
    let images = |more: &str| -> Vec<PathBuf> {
        let rules = rules(&place.config(more)).into_iter().filter(|rule| rule.what == What::Image);
        rules.map(|rule| rule.path).collect()
    };
    assert_eq!(images(WHOLE), [] as [PathBuf; 0]);
    assert_eq!(images(CONTROL), [place.path("a.img"), place.path("b.img")]);
    // One that is written needs more than to be read.
    fs::remove_file(place.path("a.img")).unwrap();
    std::os::unix::fs::symlink("bases/base.img", place.path("a.img")).unwrap();
    assert_eq!(images(WHOLE), [place.path("a.img")]);
}

#[test]
fn a_reset_that_ends_the_process_reads_nothing() {
    let place = Place::new();
    let mut config = place.config("");
    config.vm.on_reset = Restart::Exit;
    assert_eq!(rules(&config).len(), 1, "a crash restarts it");
    config.vm.on_crash = Restart::Exit;
    assert_eq!(rules(&config), []);
}

#[test]
fn a_kernel_in_the_root_directory_does_not_make_all_of_the_host_readable() {
    assert_eq!(
        boot_directory(Path::new("/vmlinuz-that-is-not-there")),
        Path::new("/vmlinuz-that-is-not-there")
    );
    let place = Place::new();
    assert_eq!(boot_directory(&place.path("kernel")), place.path("boot"));
}

/// Confines the calling thread. False where the kernel cannot.
fn confine(config: &Config) -> Option<Paths> {
    let Some(paths) = made(&rules(config)).unwrap() else {
        devices::testing::skipped("this host has no Landlock");
        return None;
    };
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: no pointers.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, paths.ruleset.as_raw_fd(), 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    Some(paths)
}

/// On a thread of its own, which alone is confined. What it is handed renames files as another program would.
fn confined(more: &str, look: impl FnOnce(&Place, &Paths, &dyn Fn(&str, &str)) + Send) {
    let place = Place::new();
    let config = place.config(more);
    let (ask, asked) = mpsc::channel::<(PathBuf, PathBuf)>();
    let (answer, answers) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (from, to) in asked {
                answer.send(fs::rename(from, to).is_ok()).unwrap();
            }
        });
        let (place, config) = (&place, &config);
        scope.spawn(move || {
            let rename = |from: &str, to: &str| {
                ask.send((place.path(from), place.path(to))).unwrap();
                assert!(answers.recv().unwrap());
            };
            if let Some(paths) = confine(config) {
                look(place, &paths, &rename);
            }
        });
    });
}

const REFUSED: Option<io::ErrorKind> = Some(io::ErrorKind::PermissionDenied);

#[test]
fn nothing_else_is_opened() {
    confined(WHOLE, |place, paths, _| {
        for (name, read, write) in [
            ("images/i.img", true, true),
            ("images/below/j.img", true, true),
            ("a.img", true, true),
            ("b.img", true, false),
            ("bases/base.img", true, false),
            ("c.img", false, false),
            ("other/o.img", false, false),
            ("boot/kernel", true, false),
            ("kernel", true, false),
        ] {
            for (writes, may) in [(false, read), (true, write)] {
                let expected = if may { None } else { REFUSED };
                assert_eq!(place.open(name, writes), expected, "{name}, writes: {writes}");
                assert_eq!(
                    paths.reach.explain(&place.path(name), writes).is_some(),
                    !may,
                    "{name} as it is told"
                );
            }
        }
        for path in ["/etc/passwd", "/proc/1/comm", "/proc/version", "/dev/null"] {
            assert_eq!(File::open(path).err().map(|e| e.kind()), REFUSED, "{path}");
        }
        fs::read_dir(place.path("bases")).unwrap();
        // What of this process and of devices could be changed by a file.
        for path in [
            "/proc/self/mem",
            "/proc/thread-self/mem",
            "/proc/self/oom_score_adj",
            "/sys/devices/system/cpu/uevent",
        ] {
            assert_eq!(OpenOptions::new().write(true).open(path).err().map(|e| e.kind()), REFUSED, "{path}");
        }
        for path in [".", "run", "boot", "/", "/proc", "/sys"] {
            let listed = fs::read_dir(place.path(path)).err().map(|e| e.kind());
            assert_eq!(listed, REFUSED, "{path}");
        }
        assert!(fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - "));
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() > 0);
        fs::read_to_string("/proc/swaps").unwrap();
        fs::read_to_string("/proc/locks").unwrap();
        if Path::new("/sys/block").exists() {
            fs::read_dir("/sys/block").unwrap();
        }
    });
}

/// As a package manager installs a kernel.
#[test]
fn a_new_kernel_in_the_place_of_the_old_one_is_read() {
    confined("", |place, paths, rename| {
        rename("other/o.img", "boot/kernel");
        assert_eq!(place.open("kernel", false), None);
        rename("c.img", "kernel");
        assert_eq!(place.open("kernel", false), REFUSED);
        let boot = place.path("boot");
        let told = format!("only what is in {} since its start", boot.display());
        let said = paths.reach.explain_boot(&place.path("kernel")).unwrap();
        assert!(said.contains(&told), "{said}");
    });
}

#[test]
fn another_file_in_the_place_of_an_image_is_another_one() {
    confined(WHOLE, |place, paths, rename| {
        rename("c.img", "a.img");
        assert_eq!(place.open("a.img", true), REFUSED);
        assert!(paths.reach.explain(&place.path("a.img"), true).is_some());
        rename("other/o.img", "images/i.img");
        assert_eq!(place.open("images/i.img", true), None);
    });
}

#[test]
fn names_are_removed_and_nothing_is_made_but_among_images() {
    confined(WHOLE, |place, _, rename| {
        rename("other/o.img", "run/control");
        fs::remove_file(place.path("run/control")).unwrap();
        let kind = |result: io::Result<()>| result.err().map(|error| error.kind());
        let path = |name: &str| place.path(name);
        for name in ["run", "boot", "bases", "other", "."] {
            let new = |what: &str| path(name).join(what);
            assert_eq!(kind(fs::write(new("file"), "x")), REFUSED, "{name}");
            assert_eq!(kind(fs::create_dir(new("directory"))), REFUSED, "{name}");
            assert_eq!(kind(std::os::unix::fs::symlink("a", new("link"))), REFUSED, "{name}");
            assert_eq!(kind(UnixListener::bind(new("socket")).map(drop)), REFUSED, "{name}");
        }
        assert_eq!(kind(fs::remove_file(path("boot/initrd"))), REFUSED);
        assert_eq!(kind(fs::remove_file(path("images/i.img"))), REFUSED);
        assert!(fs::rename(path("images/i.img"), path("images/k.img")).is_err());
        fs::write(path("images/i.pi"), "x").unwrap();
        File::open(path("images")).unwrap().sync_all().unwrap();
        assert_eq!(kind(fs::create_dir(path("images/directory"))), REFUSED);
        // What was open before the right to make a file shorter was asked for, and images that come.
        let image = OpenOptions::new().write(true).open(path("images/i.img")).unwrap();
        image.set_len(8192).unwrap();
    });
}

/// What was open before can do what it could.
#[test]
fn open_files_stay_what_they_were() {
    let place = Place::new();
    let file = OpenOptions::new().read(true).write(true).open(place.path("c.img")).unwrap();
    let config = place.config("");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if confine(&config).is_none() {
                return;
            }
            file.set_len(100).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 100);
        });
    });
}
