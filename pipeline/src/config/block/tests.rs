//! A configuration's file in memory, and what is true of each parameter of any block.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

/// A file in memory. What its parameters name lies in a temporary directory, nginx's prefix.
pub(crate) struct Written {
    pub(crate) prefix: TempDir,
    /// The line that is being read.
    line: usize,
    /// Each warning with its line.
    pub(crate) warnings: Vec<(usize, String)>,
    /// The directories for the workers.
    pub(crate) claimed: Vec<PathBuf>,
    /// Whether the disk answers.
    pub(crate) answers: bool,
}

impl Written {
    /// There are `ca.pem`, `client.pem` with `client.key`, `text.pem` without a certificate, and the keys in `key`
    /// and `empty`. Their owner alone can read them.
    pub(crate) fn new() -> Self {
        let prefix = tempfile::tempdir().unwrap();
        fs::create_dir(prefix.path().join("conf")).unwrap();
        let (warnings, claimed) = (Vec::new(), Vec::new());
        let file = Self { prefix, line: 1, warnings, claimed, answers: true };
        let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        file.write("ca.pem", &made.cert.pem());
        file.write("client.pem", &made.cert.pem());
        file.write("client.key", &made.signing_key.serialize_pem());
        file.write("text.pem", "no certificate\n");
        file.write("key", "0123456789abcdef0123456789abcdef\n");
        file.write("empty", " \n");
        file
    }

    /// Writes a file into the configuration's directory.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.prefix.path().join("conf").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Reads the block `t`, which begins in line 1, with each of the `;`-separated parameters in a line of its own.
    pub(crate) fn read<B: Block>(&mut self, text: &str) -> Result<B::Config, BlockError> {
        self.line = 1;
        self.warnings.clear();
        let mut reader = Reader::<B>::new(self, "t").unwrap();
        for parameter in text.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            self.line += 1;
            let words: Vec<_> = parameter.split(' ').map(str::as_bytes).collect();
            let set = reader.set(self, words[0], &words[1..]);
            set.map_err(|message| BlockError { place: self.place(), message })?;
        }
        self.line += 1;
        reader.finish(self)
    }

    /// What is wrong with the block.
    #[track_caller]
    pub(crate) fn error<B: Block>(&mut self, text: &str) -> String {
        let Err(error) = self.read::<B>(text) else { panic!("\"{text}\" is right") };
        error.message
    }
}

impl ConfigFile for Written {
    fn place(&self) -> Place {
        let file = self.prefix.path().join("conf/nginx.conf");
        Place { file: file.to_str().unwrap().into(), line: self.line }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push((self.line, message.into()));
    }

    fn warn_at(&mut self, place: &Place, message: &str) {
        self.warnings.push((place.line, message.into()));
    }

    fn full_name(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        Ok(self.prefix.path().join("conf").join(str::from_utf8(name).unwrap()))
    }

    fn prefix_name(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        Ok(self.prefix.path().join(str::from_utf8(name).unwrap()))
    }

    fn claim_directory(&mut self, name: &[u8]) -> Result<PathBuf, String> {
        let path = self.prefix_name(name)?;
        self.claimed.push(path.clone());
        Ok(path)
    }

    fn answers(&self, _path: &Path) -> bool {
        self.answers
    }

    fn parse_time_ms(&self, text: &[u8]) -> Option<u64> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        parsed(text, &units, 1000)
    }

    fn parse_time_s(&self, text: &[u8]) -> Option<u64> {
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("M", 2_592_000)];
        parsed(text, &units, 1)
    }

    fn parse_size(&self, text: &[u8]) -> Option<usize> {
        Some(parsed(text, &[("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30)], 1)? as usize)
    }
}

/// A number with a unit, or in units of `plain`.
fn parsed(text: &[u8], units: &[(&str, u64)], plain: u64) -> Option<u64> {
    let text = str::from_utf8(text).ok()?;
    let with_unit = |(unit, value): &(&str, u64)| Some((text.strip_suffix(unit)?, *value));
    let (number, unit) = units.iter().find_map(with_unit).unwrap_or((text, plain));
    number.parse::<u64>().ok().map(|number| number * unit)
}

/// What a parameter does.
pub(crate) struct Case<C> {
    /// What the block needs besides.
    base: &'static str,
    /// The parameter, and behind it what it needs besides.
    text: &'static str,
    /// What it sets.
    get: fn(&C) -> String,
    /// That without the parameter: its default, or what is wrong without it; `None` if the system decides.
    without: Option<&'static str>,
    /// That with the parameter.
    with: &'static str,
    /// A wrong parameter, and how the message about it begins; `%PREFIX%` is nginx's prefix.
    wrong: (&'static str, &'static str),
}

/// A parameter, what it sets, and that first without the parameter, and then with it.
pub(crate) const fn case<C>(
    base: &'static str,
    text: &'static str,
    get: fn(&C) -> String,
    [without, with]: [&'static str; 2],
    wrong: (&'static str, &'static str),
) -> Case<C> {
    let without = if without.is_empty() { None } else { Some(without) };
    Case { base, text, get, without, with, wrong }
}

impl<C> Case<C> {
    /// The parameter's name.
    pub(crate) fn name(&self) -> &'static str {
        self.text.split(' ').next().unwrap()
    }

    /// The parameter without what it needs besides.
    pub(crate) fn parameter(&self) -> &'static str {
        self.text.split(';').next().unwrap()
    }
}

pub(crate) fn show(value: impl fmt::Debug) -> String {
    format!("{value:?}")
}

/// Asserts each case, and that each parameter of the block has one.
pub(crate) fn assert_each_parameter<B: Block>(cases: &[&Case<B::Config>], repeated: &[&str]) {
    let mut file = Written::new();
    let prefix = file.prefix.path().to_str().unwrap().to_owned();
    for case in cases {
        let Case { base, text, get, without, with, wrong: (wrong, error) } = case;
        let (name, parameter) = (case.name(), case.parameter());
        let mut said = |text: String| match file.read::<B>(&text) {
            Ok(config) => get(&config),
            Err(error) => error.message.replace(&prefix, "%PREFIX%"),
        };
        if let Some(without) = without {
            assert_eq!(said((*base).into()), *without, "without {text}");
        }
        assert_eq!(said(format!("{base}; {text}")), *with, "{text}");
        let message = said(format!("{base}; {wrong}"));
        assert!(!error.is_empty() && message.starts_with(error), "{wrong}: {message}");
        let invalid_number = format!("invalid number of arguments in \"{name}\" directive");
        assert_eq!(said(format!("{base}; {name}")), invalid_number);
        let twice = said(format!("{base}; {parameter}; {parameter}"));
        let is_refused = twice == format!("\"{name}\" directive is duplicate");
        assert_eq!(is_refused, !repeated.contains(&name), "{parameter} twice: {twice}");
    }
    let mut block = B::new("t").unwrap();
    let tables = block.tables();
    let rows: Vec<_> = tables.iter().flat_map(|table| &table.rows).map(|row| row.name).collect();
    let names: BTreeSet<_> = rows.iter().copied().collect();
    assert_eq!(names.len(), rows.len(), "a name is in two tables: {rows:?}");
    assert_eq!(names, cases.iter().map(|case| case.name()).collect(), "parameters and their cases");
}
