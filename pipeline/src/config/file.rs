//! What a parameter needs from whoever reads the configuration's file, which is nginx.

use std::fs;
use std::path::{Path, PathBuf};

use crate::capture::rule::Place;

/// A configuration's file while it is read.
pub trait ConfigFile {
    /// Where the parameter stands that is being read.
    fn place(&self) -> Place;

    /// Warns of the parameter that is being read.
    fn warn(&mut self, message: &str);

    /// Warns of what stands in another place.
    fn warn_at(&mut self, place: &Place, message: &str);

    /// A file's path, relative to the configuration's directory.
    ///
    /// # Errors
    /// There is no memory for it.
    fn full_name(&mut self, name: &[u8]) -> Result<PathBuf, String>;

    /// A file's path, relative to nginx's prefix.
    ///
    /// # Errors
    /// There is no memory for it.
    fn prefix_name(&mut self, name: &[u8]) -> Result<PathBuf, String>;

    /// The path of a directory, relative to nginx's prefix, which is made for the workers' user before the
    /// workers start.
    ///
    /// # Errors
    /// Why it cannot be given to that user.
    fn claim_directory(&mut self, name: &[u8]) -> Result<PathBuf, String>;

    /// Whether the disk that the file lies on answers soon.
    fn answers(&self, path: &Path) -> bool;

    /// A time as in nginx's own directives, `500ms` or `1m 30s`, in milliseconds.
    fn parse_time_ms(&self, text: &[u8]) -> Option<u64>;

    /// A time as in nginx's own directives in seconds, `1d` or `1M 15d`, in seconds.
    fn parse_time_s(&self, text: &[u8]) -> Option<u64>;

    /// A size as in nginx's own directives, `16m` or `1g`, in bytes.
    fn parse_size(&self, text: &[u8]) -> Option<usize>;

    /// A file's path, relative to the configuration's directory, and what the file holds.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_file(&mut self, name: &[u8]) -> Result<(PathBuf, Vec<u8>), String> {
        let path = self.full_name(name)?;
        let content = fs::read(&path)
            .map_err(|error| format!("\"{}\" cannot be read: {error}", path.display()))?;
        Ok((path, content))
    }
}
