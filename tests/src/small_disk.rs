//! A small file system in memory, which is soon full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted disk; it is unmounted when this is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Creates a directory, and mounts a file system of that size (`16m`) at it; `None` if this machine
    /// does not allow it.
    ///
    /// # Panics
    /// When the directory cannot be made.
    pub fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).expect("the directory is ours");
        let options = format!("size={size},mode=0755");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(path).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails leaves nginx running until its own drop.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
