//! A mounted store with a plain and a packed file.
//!
//! Its source can be seen beside it, which shows what packing has done.

use crate::common::models::write_model;
use crate::common::mounts::{Mount, Rig, mount_test, wait_for};
use crate::common::program::SOME;
use crate::common::users::is_root;
use rustix::fs::getxattr;
use rustix::io::{Errno, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A plain file of this ending is never packed: downloads that are not finished have it.
pub const PLAIN: &str = "plain.part";
pub const PACKED: &str = "packed.safetensors";

pub struct Store {
    pub mount: Mount,
    /// The source.
    pub below: PathBuf,
}

impl Store {
    /// A store of an empty directory, which packs what has settled at once.
    pub fn new(rig: &Rig) -> Self {
        let below = rig.mkdir("below");
        Self::of(rig, below)
    }

    /// A store of this directory.
    pub fn of(rig: &Rig, below: PathBuf) -> Self {
        let open_to_all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(rig.path(""), open_to_all).unwrap();
        let mut args = vec!["--read-write", "--pack", "now", "--settle", "0"];
        args.extend(["--min-size", "64KiB"]);
        if is_root() {
            args.push("--allow-other");
        }
        let mount = rig.mount(&below, "store", &args);
        Self { mount, below }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }

    /// Make a file that stays plain.
    pub fn plain(&self, name: &str) -> Vec<u8> {
        let name = self.path(name);
        assert!(name.extension().is_some_and(|ending| ending == "part"));
        write_model(&name, 7, SOME)
    }

    /// Make a packed file. Afterwards, nothing is packed unless a test says so.
    pub fn packed(&self, name: &str) -> Vec<u8> {
        self.packed_of(name, 8)
    }

    /// The same, of a model of its own.
    pub fn packed_of(&self, name: &str, seed: u64) -> Vec<u8> {
        let path = self.path(name);
        self.command("pause");
        let model = write_model(&path, seed, SOME);
        self.pack(&path);
        model
    }

    /// Pack a file, and nothing more.
    pub fn pack(&self, path: &Path) {
        self.command("now");
        let mut polls = 0;
        wait_for("the file to be packed", || {
            polls += 1;
            if polls % 20 == 0 {
                self.command("now");
            }
            is_packed(path)
        });
        self.command("pause");
    }

    /// Tell the packer something.
    pub fn command(&self, command: &str) {
        let name = format!("user.bsz.pack.{command}");
        getxattr(self.mount.root(), name, &mut [0u8; 0]).expect("a command to the packer");
    }

    /// What the packer reports.
    pub fn status(&self) -> serde_json::Value {
        self.mount.status()["store"].clone()
    }

    /// An ordinary directory, and that of the store: what holds for one holds for the other.
    pub fn dirs(&self, rig: &Rig) -> [PathBuf; 2] {
        [rig.mkdir("ordinary"), self.mount.root().to_owned()]
    }
}

/// Run a test on a plain file and on a packed one, which get the path and the bytes.
pub fn both(test: impl Fn(&Store, &Path, &[u8]) + Send + 'static) {
    mount_test(move |rig| {
        let store = Store::new(rig);
        let model = store.plain(PLAIN);
        assert!(!is_packed(&store.path(PLAIN)));
        test(&store, &store.path(PLAIN), &model);
        let model = store.packed(PACKED);
        test(&store, &store.path(PACKED), &model);
    });
}

/// Whether a file of a store is packed.
pub fn is_packed(path: &Path) -> bool {
    match getxattr(path, "user.bsz.stored", &mut [0u8; 32]) {
        Ok(_) => true,
        Err(Errno::NODATA | Errno::NOENT) => false,
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

/// The value of an extended attribute.
pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = [0; 1024];
    getxattr(path, name, &mut value).map(|len| value[..len].to_vec())
}

/// Assert that a file holds these bytes, without printing them.
#[track_caller]
pub fn holds(path: &Path, bytes: &[u8]) {
    let read = fs::read(path).unwrap();
    same(&read, bytes);
}

/// Assert that two byte strings are the same, without printing them.
#[track_caller]
pub fn same(got: &[u8], wanted: &[u8]) {
    let first = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!((first, got.len()), (None, wanted.len()), "the first difference, and the length");
}

/// The error of something that must fail.
#[track_caller]
pub fn error<T>(outcome: std::io::Result<T>) -> Errno {
    let error = outcome.err().expect("an error");
    Errno::from_io_error(&error).expect("an error of the system")
}
