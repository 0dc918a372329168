//! A disk that confirms writes slowly: nginx's and the module's calls of `fsync` are replaced by functions
//! that wait first, while a test wants them to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Replaces the system's `fsync` and `fdatasync`. Each call that waits appends a byte to a file. The paths
/// are compiled in, because workers have no environment.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

static void wait_while_slow(void) {
    if (access(SLOW, F_OK) != 0) return;
    int file = open(CALLS, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file >= 0) {
        (void)!write(file, ".", 1);
        close(file);
    }
    usleep(200000);
}

int fsync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_while_slow();
    return real(file);
}

int fdatasync(int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_while_slow();
    return real(file);
}
"#;

/// The replacement, compiled.
pub struct SlowSync {
    library: PathBuf,
    slow: PathBuf,
    calls: PathBuf,
}

impl SlowSync {
    /// Compiles it into a directory, which nginx's workers must be able to write in.
    ///
    /// # Panics
    /// When that fails.
    pub fn compile(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name);
        fs::write(path("slow_sync.c"), SOURCE).expect("the directory is ours");
        let name = |name: &str, file: &str| format!("-D{name}=\"{}\"", path(file).display());
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o", "slow_sync.so", "slow_sync.c", "-ldl"])
            .args([name("SLOW", "slow"), name("CALLS", "calls")])
            .current_dir(directory)
            .output()
            .expect("a C compiler");
        let said = String::from_utf8_lossy(&compiler.stderr);
        assert!(compiler.status.success(), "{said}");
        Self { library: path("slow_sync.so"), slow: path("slow"), calls: path("calls") }
    }

    /// The value of `LD_PRELOAD`.
    pub fn library(&self) -> &str {
        self.library.to_str().expect("a path of a temporary directory")
    }

    /// From now on each call takes a fifth of a second longer, …
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn begin(&self) {
        fs::write(&self.slow, "").expect("the directory is ours");
    }

    /// … until now.
    pub fn end(&self) {
        // It may not have begun.
        let _ = fs::remove_file(&self.slow);
    }

    /// How many calls took longer.
    pub fn calls(&self) -> u64 {
        fs::metadata(&self.calls).map_or(0, |about| about.len())
    }
}
