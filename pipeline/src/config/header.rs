//! Header fields that a configuration adds to requests.

use ureq::http::{HeaderName, HeaderValue};

/// Whether a header can be sent.
///
/// # Errors
/// What is wrong: `"name"` or `"value"`.
pub fn check_header(name: &str, value: &str) -> Result<(), &'static str> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| "name")?;
    HeaderValue::from_str(value).map_err(|_| "value")?;
    Ok(())
}
