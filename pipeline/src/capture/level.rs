//! Mattermost's levels of audit records, and which events each target gets.

use crate::event::{EventType, EventTypes};
use crate::record::{Extra, Record};

/// The level of an audit record, as in Mattermost's audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Any other request to the application.
    Api,
    /// A change of posts or channels.
    Content,
    /// A change of roles or memberships.
    Permissions,
    /// A request of Mattermost's command line client, `mmctl`.
    Cli,
}

impl Level {
    /// All levels; a level's index here is its number minus 100.
    pub const ALL: [Self; 4] = [Self::Api, Self::Content, Self::Permissions, Self::Cli];

    /// The level's name in audit records and in `events`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "audit-api",
            Self::Content => "audit-content",
            Self::Permissions => "audit-permissions",
            Self::Cli => "audit-cli",
        }
    }

    /// The level's number in Mattermost's configuration.
    pub fn number(self) -> u16 {
        100 + self as u16
    }

    /// The level of that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// The level of that name or number.
    pub fn parse(text: &str) -> Option<Self> {
        let named = Self::ALL.into_iter().find(|level| level.name() == text);
        named.or_else(|| Self::from_number(text.parse().ok()?))
    }

    /// The level of a request whose rule sets none, by its normalized path. A request that changes
    /// something, and is no search, is about permissions if a segment is `roles`, `schemeRoles` or
    /// `members`, and about content if one is `posts` or `channels`. Other requests of `mmctl` are `Cli`.
    pub fn derive(kind: EventType, method: &[u8], path: &[u8], agent: &[u8]) -> Self {
        let reads = matches!(method, b"GET" | b"HEAD" | b"OPTIONS");
        if !reads && kind != EventType::PageSearch {
            let has = |names: &[&[u8]]| path.split(|b| *b == b'/').any(|s| names.contains(&s));
            if has(&[b"roles", b"schemeRoles", b"members"]) {
                return Self::Permissions;
            }
            if has(&[b"posts", b"channels"]) {
                return Self::Content;
            }
        }
        if agent.starts_with(b"mmctl/") { Self::Cli } else { Self::Api }
    }

    /// The record's level; [`Api`](Self::Api) if no target needed a level when the event was captured.
    pub fn of(record: &Record<'_>) -> Self {
        let number = record.extra(Extra::Level).and_then(|bytes| bytes.try_into().ok());
        number.and_then(|n| Self::from_number(u16::from_ne_bytes(n))).unwrap_or(Self::Api)
    }
}

/// Which events a target gets: a set of types for each level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing([EventTypes; Level::ALL.len()]);

impl Routing {
    /// Every event.
    pub const ALL: Self = Self([EventTypes::ALL; Level::ALL.len()]);

    /// Whether no event is for the target.
    pub fn is_empty(self) -> bool {
        self.0.iter().all(|kinds| *kinds == EventTypes::NONE)
    }

    /// Reads the patterns of `events`: like [`EventTypes::from_patterns`], where a pattern may also name
    /// levels, `audit-content`, `!audit-cli` or `102`, which stand for every type of that level.
    ///
    /// # Errors
    /// The first pattern that matches no type and no level.
    pub fn from_patterns<'a>(patterns: &[&'a str]) -> Result<Self, &'a str> {
        let only_negative = patterns.iter().all(|p| p.starts_with('!'));
        let mut routing = if only_negative { Self::ALL } else { Self([EventTypes::NONE; 4]) };
        for pattern in patterns {
            let glob = pattern.strip_prefix('!').unwrap_or(pattern);
            let kinds = EventTypes::matching(glob);
            let mut matched = kinds != EventTypes::NONE;
            for (level, set) in Level::ALL.into_iter().zip(&mut routing.0) {
                let named = match glob.strip_suffix('*') {
                    Some(prefix) => level.name().starts_with(prefix),
                    None => Level::parse(glob) == Some(level),
                };
                matched |= named;
                let kinds = if named { EventTypes::ALL } else { kinds };
                *set =
                    if glob.len() == pattern.len() { set.with(kinds) } else { set.without(kinds) };
            }
            if !matched {
                return Err(pattern);
            }
        }
        Ok(routing)
    }

    /// Whether the routing depends on the level.
    pub fn asks_for_level(&self) -> bool {
        self.0.iter().any(|set| *set != self.0[0])
    }

    /// Whether the target gets events of that type and level.
    pub fn contains(&self, kind: EventType, level: Level) -> bool {
        self.0[level as usize].contains(kind)
    }

    /// Whether the target gets the record.
    pub fn matches(&self, record: &Record<'_>) -> bool {
        self.contains(record.kind(), Level::of(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Capture;

    #[test]
    fn names_and_numbers() {
        for (number, level) in (100..).zip(Level::ALL) {
            assert_eq!(level.number(), number);
            assert_eq!(Level::parse(&number.to_string()), Some(level));
            assert_eq!(Level::parse(level.name()), Some(level));
        }
        for text in ["", "99", "104", "audit", "AUDIT-API", "65637"] {
            assert_eq!(Level::parse(text), None, "{text}");
        }
    }

    #[test]
    fn levels_of_requests() {
        use Level::*;
        let cases = [
            ("POST", "/api/v4/posts", Content),
            ("PUT", "/api/v4/posts/p1/patch", Content),
            ("DELETE", "/api/v4/channels/c1", Content),
            ("POST", "/api/v4/channels/c1/members", Permissions),
            ("DELETE", "/api/v4/teams/t1/members/u1", Permissions),
            ("PUT", "/api/v4/users/u1/roles", Permissions),
            ("PUT", "/api/v4/teams/t1/members/u1/schemeRoles", Permissions),
            ("GET", "/api/v4/channels/c1/members", Api),
            ("HEAD", "/api/v4/posts/p1", Api),
            ("POST", "/api/v4/users/login", Api),
            ("POST", "/api/v4/compost/outposts", Api),
            ("", "", Api),
        ];
        for (method, path, level) in cases {
            let of = |kind, agent| Level::derive(kind, method.as_bytes(), path.as_bytes(), agent);
            assert_eq!(of(EventType::PageEdit, b"Mozilla/5.0 mmctl/1"), level, "{method} {path}");
            let by_client = if level == Api { Cli } else { level };
            assert_eq!(of(EventType::PageEdit, b"mmctl/5.37.0"), by_client, "{method} {path}");
            assert_eq!(of(EventType::PageSearch, b""), Api, "{method} {path}");
        }
    }

    #[test]
    fn patterns_name_types_and_levels() {
        use EventType::*;
        let routing = |patterns: &[&'static str]| Routing::from_patterns(patterns);
        let content = routing(&["audit-content"]).unwrap();
        assert!(content.asks_for_level());
        assert!(content.contains(PageView, Level::Content));
        assert!(!content.contains(PageView, Level::Api));
        let both = routing(&["account_*", "102", "!audit-cli"]).unwrap();
        assert!(both.contains(AccountLogin, Level::Api));
        assert!(both.contains(PageEdit, Level::Permissions));
        assert!(!both.contains(PageEdit, Level::Api));
        assert!(!both.contains(AccountLogin, Level::Cli));
        let last_wins = routing(&["!audit-*", "*"]).unwrap();
        assert_eq!(last_wins, Routing::ALL);
        assert!(!last_wins.asks_for_level());
        let types = routing(&["!page_view"]).unwrap();
        assert!(!types.asks_for_level());
        assert!(!types.contains(PageView, Level::Cli) && types.contains(PageEdit, Level::Cli));
        assert_eq!(routing(&["page_view", "104"]), Err("104"));
        assert_eq!(routing(&["audit-apis"]), Err("audit-apis"));
        assert_eq!(routing(&["!"]), Err("!"));
    }

    #[test]
    fn records() {
        let routing = Routing::from_patterns(&["audit-permissions", "!account_*"]).unwrap();
        for (level, kind, expected) in [
            (Some(102_u16), EventType::PageEdit, true),
            (Some(102), EventType::AccountEdit, false),
            (Some(100), EventType::PageEdit, false),
            (Some(999), EventType::PageEdit, false),
            (None, EventType::PageEdit, false),
        ] {
            let level = level.map(u16::to_ne_bytes);
            let mut capture = Capture::new(0);
            capture.kind = kind;
            if let Some(level) = &level {
                capture.set_extra(Extra::Level, level);
            }
            let mut bytes = vec![0; capture.record_len()];
            capture.write(1, &mut bytes);
            assert_eq!(routing.matches(&Record::parse(&bytes).unwrap()), expected, "{level:?}");
        }
    }
}
