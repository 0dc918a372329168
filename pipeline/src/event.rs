//! The vocabulary of Tirreno's sensor: event types and parameters with their limits.
//!
//! Limits are in bytes of the value before form encoding, as measured on Tirreno 0.10.0.

/// The type of an event, in Tirreno's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum EventType {
    PageView,
    PageEdit,
    PageDelete,
    PageSearch,
    PageError,
    AccountLogin,
    AccountLogout,
    AccountLoginFail,
    AccountRegistration,
    AccountEmailChange,
    AccountPasswordChange,
    AccountEdit,
    FieldEdit,
}

impl EventType {
    /// All types; a record holds a type as its index here.
    pub const ALL: [Self; 13] = [
        Self::PageView,
        Self::PageEdit,
        Self::PageDelete,
        Self::PageSearch,
        Self::PageError,
        Self::AccountLogin,
        Self::AccountLogout,
        Self::AccountLoginFail,
        Self::AccountRegistration,
        Self::AccountEmailChange,
        Self::AccountPasswordChange,
        Self::AccountEdit,
        Self::FieldEdit,
    ];

    /// The value of the parameter `eventType`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PageView => "page_view",
            Self::PageEdit => "page_edit",
            Self::PageDelete => "page_delete",
            Self::PageSearch => "page_search",
            Self::PageError => "page_error",
            Self::AccountLogin => "account_login",
            Self::AccountLogout => "account_logout",
            Self::AccountLoginFail => "account_login_fail",
            Self::AccountRegistration => "account_registration",
            Self::AccountEmailChange => "account_email_change",
            Self::AccountPasswordChange => "account_password_change",
            Self::AccountEdit => "account_edit",
            Self::FieldEdit => "field_edit",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().as_bytes() == name)
    }

    /// The type with that number in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether it is one of the frequent types (`page_*`), which make room when a queue fills up.
    pub fn is_page(self) -> bool {
        self.name().starts_with("page_")
    }
}

/// A set of event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTypes(u16);

impl EventTypes {
    /// Every type.
    pub const ALL: Self = Self((1 << EventType::ALL.len()) - 1);
    /// No type.
    pub const NONE: Self = Self(0);

    /// Whether `kind` belongs to the set.
    pub fn contains(self, kind: EventType) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    /// Parses patterns like `account_* !page_view`: the last one that matches a type decides, and a list of
    /// negated patterns starts with all types.
    ///
    /// # Errors
    /// The first pattern that matches no type.
    pub fn from_patterns<'a>(patterns: &[&'a str]) -> Result<Self, &'a str> {
        let only_negative = patterns.iter().all(|p| p.starts_with('!'));
        let mut set = if only_negative { Self::ALL } else { Self::NONE };
        for pattern in patterns {
            let glob = pattern.strip_prefix('!').unwrap_or(pattern);
            let kinds = Self::matching(glob);
            if kinds == Self::NONE {
                return Err(pattern);
            }
            set = if glob.len() == pattern.len() { set.with(kinds) } else { set.without(kinds) };
        }
        Ok(set)
    }

    /// The types whose name matches, `account_login` or `account_*`.
    pub(crate) fn matching(glob: &str) -> Self {
        let hit = |kind: &EventType| match glob.strip_suffix('*') {
            Some(prefix) => kind.name().starts_with(prefix),
            None => kind.name() == glob,
        };
        let hits = EventType::ALL.into_iter().filter(hit);
        Self(hits.fold(0, |set, kind| set | 1 << kind as u16))
    }

    /// The union of both sets.
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The types in this set and not in the other.
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// A parameter of `POST /sensor/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Param {
    UserName,
    EmailAddress,
    IpAddress,
    Url,
    UserAgent,
    EventTime,
    HttpReferer,
    HttpMethod,
    HttpCode,
    BrowserLanguage,
    EventType,
    FirstName,
    LastName,
    FullName,
    PageTitle,
    PhoneNumber,
    UserCreated,
    Payload,
    FieldHistory,
}

/// What happens to a value that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    /// It is cut.
    Cut,
    /// The value is a number, an address or a time: like any invalid one it is left out.
    LeftOut,
    /// A cut JSON document has another meaning: the value is left out, and that is counted.
    Counted,
}

/// The limit for form fields that Tirreno does not limit; it keeps a record shorter than a segment.
const UNLIMITED: usize = 8192;

impl Param {
    /// How many parameters there are.
    pub const COUNT: usize = Self::ALL.len();

    /// All parameters; a record holds a parameter as its index here.
    pub const ALL: [Self; 19] = [
        Self::UserName,
        Self::EmailAddress,
        Self::IpAddress,
        Self::Url,
        Self::UserAgent,
        Self::EventTime,
        Self::HttpReferer,
        Self::HttpMethod,
        Self::HttpCode,
        Self::BrowserLanguage,
        Self::EventType,
        Self::FirstName,
        Self::LastName,
        Self::FullName,
        Self::PageTitle,
        Self::PhoneNumber,
        Self::UserCreated,
        Self::Payload,
        Self::FieldHistory,
    ];

    /// Its name in the form.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserName => "userName",
            Self::EmailAddress => "emailAddress",
            Self::IpAddress => "ipAddress",
            Self::Url => "url",
            Self::UserAgent => "userAgent",
            Self::EventTime => "eventTime",
            Self::HttpReferer => "httpReferer",
            Self::HttpMethod => "httpMethod",
            Self::HttpCode => "httpCode",
            Self::BrowserLanguage => "browserLanguage",
            Self::EventType => "eventType",
            Self::FirstName => "firstName",
            Self::LastName => "lastName",
            Self::FullName => "fullName",
            Self::PageTitle => "pageTitle",
            Self::PhoneNumber => "phoneNumber",
            Self::UserCreated => "userCreated",
            Self::Payload => "payload",
            Self::FieldHistory => "fieldHistory",
        }
    }

    /// The parameter of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name().as_bytes() == name)
    }

    /// The most bytes that Tirreno keeps of its value.
    pub fn limit(self) -> usize {
        match self {
            Self::Url | Self::HttpReferer => 2047,
            Self::UserAgent => 511,
            Self::EmailAddress | Self::BrowserLanguage | Self::PageTitle => 255,
            Self::UserName
            | Self::HttpMethod
            | Self::EventType
            | Self::FirstName
            | Self::LastName
            | Self::FullName => 100,
            Self::PhoneNumber => 19,
            Self::HttpCode => 5,
            Self::IpAddress => 45,
            Self::EventTime | Self::UserCreated => 26,
            Self::Payload | Self::FieldHistory => UNLIMITED,
        }
    }

    /// What happens to a value over the [`limit`](Self::limit).
    pub fn over_limit(self) -> OverLimit {
        match self {
            Self::Payload | Self::FieldHistory => OverLimit::Counted,
            Self::HttpCode | Self::IpAddress | Self::EventTime | Self::UserCreated => {
                OverLimit::LeftOut
            }
            _ => OverLimit::Cut,
        }
    }

    /// This parameter's bit in a set of parameters.
    pub fn bit(self) -> u32 {
        1 << self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers() {
        for (i, t) in EventType::ALL.into_iter().enumerate() {
            assert_eq!(t as usize, i);
            assert_eq!(EventType::from_name(t.name().as_bytes()), Some(t));
        }
        for (i, p) in Param::ALL.into_iter().enumerate() {
            assert_eq!(p as usize, i);
            assert_eq!(Param::from_name(p.name().as_bytes()), Some(p));
        }
    }

    #[test]
    fn routing_patterns() {
        let set = |p: &[&'static str]| EventTypes::from_patterns(p);
        let logins = set(&["account_*", "!account_edit"]).unwrap();
        assert!(logins.contains(EventType::AccountLogin));
        assert!(!logins.contains(EventType::AccountEdit));
        assert!(!logins.contains(EventType::PageView));
        let quiet = set(&["!page_view"]).unwrap();
        assert!(quiet.contains(EventType::PageEdit) && !quiet.contains(EventType::PageView));
        let last_wins = set(&["!page_*", "*", "page_view"]).unwrap();
        assert_eq!(last_wins, EventTypes::ALL);
        assert_eq!(set(&["page_view", "login"]), Err("login"));
    }
}
