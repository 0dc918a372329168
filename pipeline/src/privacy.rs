//! What a target is not to know: a record as one target sees it.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::event::Param;
use crate::form::parse_ip;
use crate::record::{self, Extra, Record};

/// A target's privacy settings; the default hides nothing.
#[derive(Clone, Debug, Default)]
pub struct Privacy {}

impl Privacy {
    /// The record as the target sees it.
    pub fn view<'a>(&'a self, record: Record<'a>) -> View<'a> {
        View { record }
    }
}

/// A record as one target sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    record: Record<'a>,
}

impl<'a> View<'a> {
    /// The record, for what no setting hides: trace id, time, type, status.
    pub fn record(&self) -> &Record<'a> {
        &self.record
    }

    /// A parameter's bytes.
    pub fn get(&self, param: Param) -> Option<Cow<'a, [u8]>> {
        self.record.get(param).map(Cow::Borrowed)
    }

    /// What the record has beside the parameters; segments come one by one.
    pub fn extra(&self, extra: Extra) -> Option<Cow<'a, [u8]>> {
        self.record.extra(extra).map(Cow::Borrowed)
    }

    /// The named segments of the path.
    pub fn segments(&self) -> impl Iterator<Item = (&'a str, Cow<'a, [u8]>)> + use<'a> {
        let held = self.record.extra(Extra::Segments).unwrap_or_default();
        record::segments(held).map(|(name, value)| (name, Cow::Borrowed(value)))
    }

    /// The client's address: the one that was given, or else the peer's.
    pub fn ip(&self) -> Option<IpAddr> {
        self.record.get(Param::IpAddress).and_then(parse_ip).or(self.record.ip())
    }
}
