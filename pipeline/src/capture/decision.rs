//! The decision about an exchange, from plain facts without nginx: whether it is an event, of which type, and
//! of which user.

use std::borrow::Cow;

use crate::capture::exchange::{Exchange, Session, Text};
use crate::capture::identity::Identity;
use crate::capture::known_accounts::{AccountKey, KnownAccounts};
use crate::capture::rank::Rank;
use crate::capture::rule::{Rule, RuleSet, Unknown, User, read};
use crate::capture::rules::Segments;
use crate::capture::value::{Read, Trust, Value, basic_name, user_name};
use crate::event::EventType;

/// `tirreno_verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// A claim counts.
    #[default]
    Off,
    /// A claim counts on an accepted request.
    Answer,
    /// No claim counts.
    Session,
}

/// The configuration of a location.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'c, T> {
    /// `tirreno_event`.
    pub rules: Option<&'c RuleSet<T>>,
    /// `tirreno_default_event`; `None` for `off`.
    pub default_event: Option<EventType>,
    /// `tirreno_user`.
    pub users: &'c [Value<T>],
    /// `tirreno_param userName`, which replaces every other user.
    pub given_user: Option<&'c Value<T>>,
    /// `tirreno_param eventType`.
    pub given_kind: Option<&'c Value<T>>,
    /// `tirreno_anonymous`.
    pub anonymous: bool,
    /// `tirreno_verify`.
    pub verify: Verify,
    /// `tirreno_user_case`.
    pub user_case: bool,
    /// Whether there is a `tirreno_session`.
    pub has_session: bool,
}

/// Where the accounts of logins are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Accounts<'z> {
    /// The accounts whose users are known.
    pub known: &'z KnownAccounts,
    /// The realm: `tirreno_realm`.
    pub realm: &'z [u8],
    /// The request's time, milliseconds since the epoch.
    pub time_ms: i64,
}

impl Accounts<'_> {
    /// The key of the account with this name, in its recorded form.
    fn key(&self, name: &[u8]) -> AccountKey {
        self.known.key(self.realm, str::from_utf8(name).unwrap_or_default())
    }
}

/// An event.
#[derive(Debug)]
pub struct Decision<'e, 'p, T> {
    /// The rule, and the segments of the path that it names.
    pub matched: Option<(&'e Rule<T>, Segments<'e, 'p>)>,
    /// The event's type.
    pub kind: EventType,
    /// The user, and the evidence.
    pub whose: Whose<'e>,
    /// How important it is if there is no room for all.
    pub rank: Rank,
    /// Whether it is only an attempt: it is unknown whether the action took place.
    pub is_attempt: bool,
    /// Whether it is a failed login that a successful login withdraws.
    pub is_first_step: bool,
    /// Whether it is an event even without a user.
    pub anonymous: bool,
}

/// The user of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whose<'e> {
    /// The user; empty if none is known.
    pub user: Cow<'e, [u8]>,
    /// The evidence for the user.
    pub identity: Identity,
    /// The user whom the client claims to be, if that is not the proven one; else empty.
    pub claimed: Cow<'e, [u8]>,
    /// A keyed hash of the account in the request that is, or may be, the user's.
    pub account: Option<[u8; 8]>,
    /// Whether the application has accepted a session that cannot be read, or has perhaps accepted it: the answer would
    /// show it if the application certainly saw the same method and path.
    pub unreadable_session: bool,
}

impl<T> Decision<'_, '_, T> {
    /// Whether it is no event because it has no user.
    pub fn is_skipped(&self) -> bool {
        self.whose.user.is_empty() && !self.anonymous
    }

    /// The rule.
    pub fn rule(&self) -> Option<&Rule<T>> {
        self.matched.as_ref().map(|(rule, _)| *rule)
    }
}

/// Decides; `None` if the exchange is no event.
pub fn decide<'e, T: Text, X: Exchange<Text = T>>(
    exchange: &'e X,
    settings: &Settings<'e, T>,
    accounts: Option<Accounts<'_>>,
) -> Option<Decision<'e, 'e, T>> {
    let is_hung_up = exchange.is_hung_up();
    let matched = find(exchange, settings.rules, is_hung_up);
    let rule = matched.as_ref().map(|(rule, _)| *rule);
    let mut kind = rule.map_or(settings.default_event, |rule| rule.event)?;
    if let Some(given) = settings.given_kind {
        kind = EventType::from_name(&given.get(exchange, None).text()).unwrap_or(kind);
    }
    if is_hung_up && kind == EventType::AccountLoginFail {
        // It is unknown whether the login would have failed.
        kind = EventType::AccountLogin;
    }
    let whose = Attribution { exchange, settings, rule, kind, is_hung_up, accounts }.attribute();
    let anonymous = is_hung_up
        || whose.unreadable_session
        || rule.and_then(|rule| rule.anonymous).unwrap_or(settings.anonymous);
    Some(Decision {
        rank: Rank::of(kind, whose.identity),
        is_attempt: is_hung_up || rule.is_some_and(|rule| rule.is_attempt),
        is_first_step: kind == EventType::AccountLoginFail
            && rule.is_some_and(|rule| rule.is_first_step(exchange)),
        matched,
        kind,
        whose,
        anonymous,
    })
}

/// What an answer tells about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lesson<'e> {
    /// Nothing.
    Nothing,
    /// The answer's body will tell, and has not come yet.
    InBody,
    /// The session's user.
    User(Cow<'e, [u8]>),
    /// That it has ended.
    Ended,
}

/// What the application's answer tells about a session, by the first matching rule. `is_read`: whether the
/// answer's body has been read, or will not come.
pub fn lesson<'e, T: Text, X: Exchange<Text = T>>(
    exchange: &'e X,
    rules: &'e RuleSet<T>,
    user_case: bool,
    is_read: bool,
) -> Lesson<'e> {
    let Some(path) = exchange.path() else { return Lesson::Nothing };
    if !exchange.is_applications() || !exchange.is_exact() || rules.is_overridden(exchange) {
        return Lesson::Nothing;
    }
    let mut is_early = false;
    let found = rules.first(exchange.method(), path, |rule, _| {
        is_early = !is_read && rule.depends_on_answer();
        is_early || rule.check(exchange, true).is_ok()
    });
    let Some((rule, _)) = found else { return Lesson::Nothing };
    if is_early {
        return Lesson::InBody;
    }
    let accepted = rule.session.as_ref().map(|required| required.holds(exchange));
    let Some(bind) = &rule.bind else {
        let is_logout = rule.event == Some(EventType::AccountLogout);
        return if is_logout && accepted == Some(true) { Lesson::Ended } else { Lesson::Nothing };
    };
    let is_refused = exchange.status() < 200 || exchange.status() >= 400;
    // A value from the client, a cookie that the application has signed, is proven only by an accepted session.
    if !accepted.unwrap_or(!is_refused && bind.trust() > Trust::Claim) {
        return Lesson::Nothing;
    }
    if bind.trust() == Trust::Claim && bind.has_several_cookies(exchange) {
        return Lesson::Nothing;
    }
    if bind.reads_answer() && !is_read {
        return Lesson::InBody;
    }
    let user = read(bind, Some(rule), exchange).text();
    let user = if user.trim_ascii().is_empty() { user } else { user_name(user, user_case) };
    if user.is_empty() { Lesson::Nothing } else { Lesson::User(user) }
}

/// The first matching rule. Without an answer, rules about failures come after the others, and after them what is no
/// event with some answers. So does a rule about a failure of basic authentication if the session is known: the
/// application has refused the session's user.
fn find<'e, T: Text, X: Exchange<Text = T>>(
    exchange: &'e X,
    rules: Option<&'e RuleSet<T>>,
    is_hung_up: bool,
) -> Option<(&'e Rule<T>, Segments<'e, 'e>)> {
    let (rules, path) = (rules?, exchange.path()?);
    let holds = |rule: &Rule<T>| rule.check(exchange, !is_hung_up).is_ok();
    let is_bound = || matches!(exchange.session(), Session::Bound(..));
    let is_failure = |rule: &Rule<T>| {
        let is_basic = || rule.users.iter().any(|user| matches!(user, User::Basic));
        rule.event == Some(EventType::AccountLoginFail) && (is_hung_up || is_basic() && is_bound())
    };
    let is_doubtful = |rule: &Rule<T>| is_hung_up && rule.event.is_none() && rule.asks_for_answer();
    let first = |wanted: &dyn Fn(&Rule<T>) -> bool| {
        rules.first(exchange.method(), path, |rule, _| wanted(rule) && holds(rule))
    };
    first(&|rule| !is_failure(rule) && !is_doubtful(rule))
        .or_else(|| first(&is_failure))
        .or_else(|| first(&is_doubtful))
}

/// Finds the user of a request.
struct Attribution<'q, 'e, 'z, T, X> {
    exchange: &'e X,
    settings: &'q Settings<'e, T>,
    rule: Option<&'e Rule<T>>,
    kind: EventType,
    is_hung_up: bool,
    accounts: Option<Accounts<'z>>,
}

/// A user with the evidence for it.
type Named<'e> = (Cow<'e, [u8]>, Identity);

impl<'e, T: Text, X: Exchange<Text = T>> Attribution<'_, 'e, '_, T, X> {
    fn attribute(&self) -> Whose<'e> {
        let is_answered = self.is_answered();
        let is_accepted = is_answered && self.is_exact();
        let session = self.exchange.session();
        let claims_count = self.claims_count(is_accepted, &session);
        let account = self.account(&session);
        let mut whose = Whose::default();
        let named = match self.settings.given_user {
            Some(given) => self.value(given, claims_count),
            None => match self.rules_users() {
                [] => self.location_user(&session, claims_count),
                users => {
                    let each = |user| self.rules_user(user, &session, claims_count, &account);
                    let asks_session = users.iter().any(|user| matches!(user, User::Session));
                    let last = || {
                        self.unnamed(&account).or_else(|| {
                            asks_session.then(|| unknown_session(&session, is_accepted)).flatten()
                        })
                    };
                    users.iter().find_map(each).or_else(last)
                }
            },
        };
        let named = named.or_else(|| {
            let asks = self.settings.given_user.is_none() && self.rules_users().is_empty();
            asks.then(|| unknown_session(&session, is_accepted)).flatten()
        });
        let named = named.or_else(|| self.attempted(&session));
        match named {
            Some((user, identity)) => {
                whose.user = user_name(user, self.settings.user_case);
                whose.identity = identity;
            }
            None => {
                let has_none = self.settings.has_session
                    && matches!(session, Session::None | Session::Unreadable);
                whose.unreadable_session = is_answered && (!is_accepted || has_none);
            }
        }
        whose.account = account.and_then(|account| self.learn(&account, &whose));
        if whose.identity.is_proof() {
            whose.claimed = self.claim(&whose).unwrap_or_default();
        }
        whose
    }

    fn rules_users(&self) -> &'e [User<T>] {
        self.rule.map_or(&[], |rule| &rule.users)
    }

    /// Whether the application has answered as it does only to a valid session, if it saw the same method and path.
    fn is_answered(&self) -> bool {
        let required = self.rule.and_then(|rule| rule.session.as_ref());
        !self.is_hung_up
            && self.exchange.is_applications()
            && required.is_some_and(|required| required.holds(self.exchange))
    }

    /// Whether the application certainly sees the same method and path as the rules.
    fn is_exact(&self) -> bool {
        let is_overridden = |rules: &RuleSet<T>| rules.is_overridden(self.exchange);
        self.exchange.is_exact() && !self.settings.rules.is_some_and(is_overridden)
    }

    fn claims_count(&self, is_accepted: bool, session: &Session<'_>) -> bool {
        if self.is_hung_up || *session != Session::None {
            return false;
        }
        match self.settings.verify {
            Verify::Off => true,
            Verify::Answer => is_accepted,
            Verify::Session => false,
        }
    }

    /// A user that a value names.
    fn value(&self, value: &Value<T>, claims_count: bool) -> Option<Named<'e>> {
        if value.reads_answer() && !self.is_exact() {
            return None;
        }
        let identity = match value.trust() {
            Trust::Answer => Identity::Answer,
            // The administrator's own word is no evidence for this request.
            Trust::Verified if value.constant().is_some() => Identity::None,
            Trust::Verified => Identity::Session,
            Trust::Claim if claims_count => Identity::Claim,
            Trust::Claim => return None,
        };
        let text = read(value, self.rule, self.exchange).text();
        (!text.trim_ascii().is_empty()).then_some((text, identity))
    }

    /// The user by `tirreno_user`: proven values first. A constant proves nothing about this request; it comes
    /// with the claims.
    fn location_user(&self, session: &Session<'e>, claims_count: bool) -> Option<Named<'e>> {
        let is_proof =
            |value: &Value<T>| value.trust() > Trust::Claim && value.constant().is_none();
        let users = self.settings.users.iter();
        let mut proven = users.clone().filter(|value| is_proof(value));
        let mut others = users.filter(|value| !is_proof(value));
        let other = || others.find_map(|value| self.value(value, claims_count));
        let proven = proven.find_map(|value| self.value(value, false));
        proven.or_else(|| bound(session)).or_else(other)
    }

    fn rules_user(
        &self,
        user: &'e User<T>,
        session: &Session<'e>,
        claims_count: bool,
        account: &Option<Account<'e>>,
    ) -> Option<Named<'e>> {
        match user {
            User::Session => bound(session),
            User::Value(value) if !value.reads_body() => self.value(value, claims_count),
            User::Basic if self.kind == EventType::AccountLoginFail && bound(session).is_some() => {
                bound(session)
            }
            User::Basic if self.kind != EventType::AccountLoginFail => {
                let name = basic_name(self.exchange.header("authorization")?)?;
                claims_count.then(|| (self.user_of(name), Identity::Claim))
            }
            written => {
                let account = account.as_ref().filter(|account| account.is_by(written))?;
                let user = self.account_user(account)?;
                (!user.is_empty()).then_some((user, Identity::Claim))
            }
        }
    }

    /// The user who has signed in under that name, or else the name itself.
    fn user_of(&self, name: Vec<u8>) -> Cow<'e, [u8]> {
        let name = user_name(name.into(), true);
        let known = self.accounts.and_then(|accounts| accounts.known.find(&accounts.key(&name)));
        match known {
            // Where case matters, the account may be another one: accounts are learned without it.
            Some(known) if !(self.settings.user_case && known.eq_ignore_ascii_case(&name)) => {
                known.into()
            }
            _ => name,
        }
    }

    /// Whether the account in the request determines the user of an event of this type.
    fn is_of_account(&self) -> bool {
        let is_confirmed = self.rule.is_some_and(|rule| rule.confirmed);
        !self.is_hung_up && (self.kind == EventType::AccountLoginFail || is_confirmed)
    }

    /// The account's user, or the name that stands for an unknown account.
    fn account_user(&self, account: &Account<'e>) -> Option<Cow<'e, [u8]>> {
        if !self.is_of_account() {
            return None;
        }
        let unknown = self.rule.map_or(Unknown::Hash, |rule| rule.unknown);
        let known = self.accounts.zip(account.key.as_ref());
        if let Some(id) = known.and_then(|(accounts, key)| accounts.known.find(key)) {
            return Some(id.into());
        }
        // The application has signed in this very name, and the account is not in dispute.
        let is_undisputed = || known.is_none_or(|(accounts, key)| !accounts.known.has(key));
        let is_let_in = || self.kind == EventType::AccountLogin && is_undisputed();
        match unknown {
            Unknown::Hash if is_let_in() => Some(account.name.clone()),
            Unknown::Hash => Some(account.key.as_ref()?.alias().into_bytes().into()),
            Unknown::Send => Some(account.name.clone()),
            Unknown::Omit => None,
        }
    }

    /// The user of an attempt whose rule finds the user in the answer, which did not come: the session's. Who signs in
    /// is not the user of an older session.
    fn attempted(&self, session: &Session<'e>) -> Option<Named<'e>> {
        let is_nobodys = |user: &User<T>| matches!(user, User::Value(value) if value.is_nothing());
        let asks = self.is_hung_up
            && self.settings.given_user.is_none()
            && self.kind != EventType::AccountLogin
            && !self.rules_users().iter().all(is_nobodys);
        asks.then(|| bound(session)).flatten()
    }

    /// The user of a failed login that should name an account and does not.
    fn unnamed(&self, account: &Option<Account<'e>>) -> Option<Named<'e>> {
        let rule = self.rule.filter(|rule| rule.unknown != Unknown::Omit)?;
        if account.is_some() || self.is_hung_up || self.kind != EventType::AccountLoginFail {
            return None;
        }
        let mut written = rule.users.iter().filter(|user| user.is_written()).peekable();
        written.peek()?;
        let is_unread = |user: &User<T>| match user {
            User::Value(value) => read(value, self.rule, self.exchange) == Read::Unread,
            _ => false,
        };
        let name: &[u8] =
            if written.any(is_unread) { b"unknown-unread" } else { b"unknown-unreadable" };
        Some((name.into(), Identity::None))
    }

    /// The account that the client names in its request, by the first of the rule's users that has a value.
    fn account(&self, session: &Session<'_>) -> Option<Account<'e>> {
        if self.is_hung_up {
            return None;
        }
        let written = self.rules_users().iter().filter(|user| user.is_written());
        written.into_iter().find_map(|user| {
            let name = match user {
                User::Value(value) => read(value, self.rule, self.exchange).text(),
                _ if self.kind != EventType::AccountLoginFail => return None,
                _ if matches!(session, Session::Bound(..)) => return None,
                _ => basic_name(self.exchange.header("authorization")?)?.into(),
            };
            if name.trim_ascii().is_empty() {
                return None;
            }
            let name = user_name(name, true);
            let key = self.accounts.map(|accounts| accounts.key(&name));
            Some(Account { by: std::ptr::from_ref(user).cast(), name, key })
        })
    }

    /// Learns the account's user from a successful login. Returns the account if it is the user's.
    fn learn(&self, account: &Account<'_>, whose: &Whose<'_>) -> Option<[u8; 8]> {
        let (accounts, key) = (self.accounts?, account.key.as_ref()?);
        if self.kind == EventType::AccountLoginFail {
            return Some(key.tag);
        }
        if self.kind != EventType::AccountLogin {
            return None;
        }
        if whose.identity == Identity::Claim {
            // The application has accepted the name, and no answer names another user: failed logins with it
            // belong to the same user.
            let named = || user_name(account.name.clone(), self.settings.user_case) == whose.user;
            if self.is_of_account() && !accounts.known.has(key) && named() {
                accounts.known.learn(key, &whose.user, accounts.time_ms);
            }
            return None;
        }
        if whose.identity != Identity::Answer {
            return None;
        }
        let is_known = accounts.known.find(key).is_none_or(|known| known == *whose.user);
        accounts.known.learn(key, &whose.user, accounts.time_ms);
        is_known.then_some(key.tag)
    }

    /// The user whom the client claims to be, if that is another one.
    fn claim(&self, whose: &Whose<'e>) -> Option<Cow<'e, [u8]>> {
        let of_rule = self.rules_users().iter().filter_map(|user| match user {
            User::Value(value) if !value.reads_body() => Some(value),
            _ => None,
        });
        // A login of another user may well come with an old cookie.
        let is_login = matches!(self.kind, EventType::AccountLogin | EventType::AccountLoginFail);
        let asks_session = self.rules_users().iter().any(|user| matches!(user, User::Session));
        let is_told = !is_login
            || self.rules_users().is_empty()
            || asks_session && whose.identity != Identity::Answer;
        let of_location = self.settings.users.iter().filter(|_| is_told);
        let mut claims =
            of_rule.chain(of_location).filter(|value| value.trust() == Trust::Claim).peekable();
        // Almost every claim is the user's very name.
        if claims.peek().is_some_and(|value| value.is_cookie_of(self.exchange, &whose.user)) {
            return None;
        }
        let (claim, _) = claims.find_map(|value| self.value(value, true))?;
        if claim == whose.user {
            return None;
        }
        Some(user_name(claim, self.settings.user_case)).filter(|claim| *claim != whose.user)
    }
}

/// The account in a request.
struct Account<'e> {
    /// The rule's user that names it; only its address is used.
    by: *const (),
    name: Cow<'e, [u8]>,
    key: Option<AccountKey>,
}

impl Account<'_> {
    fn is_by<T>(&self, user: &User<T>) -> bool {
        self.by == std::ptr::from_ref(user).cast()
    }
}

fn bound<'e>(session: &Session<'e>) -> Option<Named<'e>> {
    match session {
        Session::Bound(user, identity) => Some((user.clone(), *identity)),
        _ => None,
    }
}

/// The name of an accepted session whose user is unknown.
fn unknown_session<'e>(session: &Session<'e>, is_accepted: bool) -> Option<Named<'e>> {
    match session {
        Session::Unknown(alias) if is_accepted => Some((alias.clone(), Identity::None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::capture::extract::Found;
    use crate::capture::facts::{Facts, Template, compile, value};
    use crate::capture::rule::{Entry, Place};
    use crate::shm::zone::anonymous;

    fn rules(list: &[&'static str]) -> Rc<RuleSet<Template>> {
        let entries: Vec<Rc<Entry<Template>>> = list
            .iter()
            .map(|text| {
                let args: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
                let place = Place { file: "test".into(), line: 1 };
                Rc::new(Rule::parse(&args, place, &mut compile).unwrap())
            })
            .collect();
        RuleSet::new(&entries, None).unwrap()
    }

    struct Location {
        rules: Rc<RuleSet<Template>>,
        users: Vec<Value<Template>>,
        verify: Verify,
        has_session: bool,
    }

    impl Location {
        fn new(list: &[&'static str]) -> Self {
            let users = vec![value("$cookie_user")];
            Self { rules: rules(list), users, verify: Verify::Off, has_session: false }
        }

        fn settings(&self) -> Settings<'_, Template> {
            Settings {
                rules: Some(&self.rules),
                default_event: None,
                users: &self.users,
                given_user: None,
                given_kind: None,
                anonymous: false,
                verify: self.verify,
                user_case: true,
                has_session: self.has_session,
            }
        }

        /// Type, user and evidence of an event.
        fn of(&self, facts: &Facts) -> Option<String> {
            let decision = decide(facts, &self.settings(), None)?;
            let user = String::from_utf8(decision.whose.user.to_vec()).unwrap();
            let skipped = if decision.is_skipped() { " skipped" } else { "" };
            let attempt = if decision.is_attempt { " attempt" } else { "" };
            let (kind, identity) = (decision.kind.name(), decision.whose.identity.name());
            Some(format!("{kind} {user} {identity}{attempt}{skipped}"))
        }

        #[track_caller]
        fn assert(&self, facts: &Facts, expected: &str) {
            assert_eq!(self.of(facts).as_deref().unwrap_or("off"), expected, "{facts:?}");
        }
    }

    fn cookie() -> Facts {
        Facts { path: "/a", variables: vec![("cookie_user", "ann")], ..Facts::default() }
    }

    #[test]
    fn the_first_rule_whose_keys_all_hold() {
        let location = Location::new(&[
            "page_edit GET /a status=404",
            "page_delete GET /a if=arg:x=1,2 if=!arg:y",
            "page_search GET /a if=answer~done",
            "account_edit GET /a if=answer:kind=edit status=2xx",
            "page_view GET /a if=!arg:z=1",
        ]);
        let facts = cookie();
        location.assert(&facts, "page_view ann claim");
        location.assert(&Facts { status: 404, ..facts.clone() }, "page_edit ann claim");
        location.assert(&Facts { query: "x=2", ..facts.clone() }, "page_delete ann claim");
        location.assert(&Facts { query: "x=3", ..facts.clone() }, "page_view ann claim");
        location.assert(&Facts { query: "x=1&y=1", ..facts.clone() }, "page_view ann claim");
        let done = Facts { answer_text: "all done.", ..facts.clone() };
        location.assert(&done, "page_search ann claim");
        let edit = Facts { answer: vec![("kind", Found::Value("edit"))], ..facts.clone() };
        location.assert(&edit, "account_edit ann claim");
        location.assert(&Facts { query: "z=1", ..facts.clone() }, "off");
        location.assert(&Facts { path: "/b", ..facts }, "off");
    }

    #[test]
    fn who_hangs_up_has_only_tried() {
        let mut location = Location::new(&[
            "off * /{*rest} status=401 if=$upstream_http_y",
            "account_login_fail POST /login status=4xx body=json user=body:id",
            "account_login POST /login status=2xx body=json user=answer:id user=body:id confirmed=body",
            "account_login_fail POST /only status=401 body=json user=body:id",
            "page_edit POST /post status=201 if=$upstream_http_x",
            "page_edit POST /arg if=arg:x",
            "page_edit POST /own user=answer:id",
            "page_edit POST /nobody user=",
        ]);
        for status in [499, 0] {
            let facts = Facts {
                method: "POST",
                path: "/login",
                status,
                variables: vec![("cookie_user", "ann")],
                body: vec![("id", Found::Value("victim"))],
                ..Facts::default()
            };
            location.assert(&facts, "account_login  none attempt");
            location
                .assert(&Facts { path: "/only", ..facts.clone() }, "account_login  none attempt");
            location.assert(&Facts { path: "/post", ..facts.clone() }, "page_edit  none attempt");
            location.assert(&Facts { path: "/arg", ..facts.clone() }, "off");
            location.assert(&Facts { path: "/other", ..facts.clone() }, "off");
            let session = Session::Bound(b"ann".into(), Identity::Session);
            let known = Facts { path: "/post", session, ..facts.clone() };
            location.assert(&known, "page_edit ann session attempt");
            // Where the answer would name the user, it is the session's; not of who signs in with an old cookie.
            let own = Facts { path: "/own", ..known.clone() };
            location.assert(&own, "page_edit ann session attempt");
            let login = Facts { path: "/login", ..known.clone() };
            location.assert(&login, "account_login  none attempt");
            location.assert(&Facts { path: "/nobody", ..known }, "page_edit  none attempt");
            location.assert(&Facts { path: "/own", ..facts }, "page_edit  none attempt");
        }
        location.verify = Verify::Session;
        let facts = Facts { method: "POST", path: "/post", status: 499, ..Facts::default() };
        location.assert(&facts, "page_edit  none attempt");
    }

    #[test]
    fn claims_and_sessions() {
        let mut location = Location::new(&[
            "page_view GET /a",
            "page_view GET /marked session=required",
            "page_view GET /list session=required:2xx,404",
            "page_edit GET /own user=answer:id user=session user=$cookie_user",
            "page_edit GET /order user=$cookie_user user=session",
            "page_edit GET /none user=answer:id",
        ]);
        location.has_session = true;
        let facts = cookie();
        let at = |path, status, session: &Session<'static>| Facts {
            path,
            status,
            session: session.clone(),
            ..facts.clone()
        };
        let none = Session::None;
        let unknown = Session::Unknown(b"session-1".into());
        let bound = Session::Bound(b"bob".into(), Identity::Session);
        location.assert(&at("/a", 200, &none), "page_view ann claim");
        // A token says more than a cookie, known or not.
        location.assert(&at("/a", 200, &unknown), "page_view  none skipped");
        location.assert(&at("/a", 200, &bound), "page_view bob session");
        location.assert(&at("/a", 200, &Session::Unreadable), "page_view  none skipped");
        location.assert(&at("/marked", 200, &Session::Unreadable), "page_view  none");
        location.assert(&at("/marked", 200, &unknown), "page_view session-1 none");
        location.assert(&at("/marked", 403, &unknown), "page_view  none skipped");
        location.assert(&at("/list", 404, &unknown), "page_view session-1 none");
        location.assert(&at("/order", 200, &bound), "page_edit bob session");
        location.assert(&at("/own", 200, &none), "page_edit ann claim");
        location.assert(&at("/none", 200, &bound), "page_edit  none skipped");
        let answered =
            Facts { answer: vec![("id", Found::Value("eve"))], ..at("/own", 200, &bound) };
        location.assert(&answered, "page_edit eve answer");
        location.verify = Verify::Answer;
        // Without a mark nothing says that anybody has looked at the session.
        location.assert(&at("/a", 200, &none), "page_view  none skipped");
        location.assert(&at("/marked", 200, &none), "page_view ann claim");
        location.assert(&at("/marked", 404, &none), "page_view  none skipped");
        location.assert(&at("/list", 404, &none), "page_view ann claim");
        let by_nginx = Facts { is_applications: false, ..at("/marked", 200, &none) };
        location.assert(&by_nginx, "page_view  none skipped");
        location.verify = Verify::Session;
        location.assert(&at("/marked", 403, &none), "page_view  none skipped");
        // Accepted, and nobody can read by what.
        location.assert(&at("/marked", 200, &none), "page_view  none");
        location.assert(&at("/marked", 200, &bound), "page_view bob session");
    }

    #[test]
    fn what_may_be_another_method_proves_nothing() {
        let mut location = Location::new(&[
            "page_edit POST /a session=required",
            "account_login POST /login user=answer:id user=body:name body=php confirmed=body",
        ]);
        location.verify = Verify::Answer;
        let post = Facts { method: "POST", ..cookie() };
        let answer = vec![("id", Found::Value("eve"))];
        let login = Facts { path: "/login", answer, ..post.clone() };
        location.assert(&post, "page_edit ann claim");
        location.assert(&login, "account_login eve answer");
        let by = |facts: &Facts, name, found| Facts { body: vec![(name, found)], ..facts.clone() };
        for name in ["_method", "X-HTTP-Method-Override"] {
            for found in [Found::Value("PUT"), Found::Value(""), Found::Unreadable, Found::Unread] {
                // It is no proof, and no reason to leave the event out.
                location.assert(&by(&post, name, found), "page_edit  none");
                location.assert(&by(&login, name, found), "account_login  none skipped");
            }
        }
        location.assert(&by(&post, "method", Found::Value("PUT")), "page_edit ann claim");
        let put = Facts { method: "PUT", ..by(&post, "_method", Found::Value("POST")) };
        location.assert(&put, "off");
        // An application that reads JSON alone reads no such field.
        let mut json = Location::new(&[
            "page_edit POST /a session=required",
            "account_login_fail POST /login user=body:name body=json",
        ]);
        json.verify = Verify::Answer;
        json.assert(&by(&post, "_method", Found::Value("PUT")), "page_edit ann claim");
    }

    #[test]
    fn a_constant_user_has_its_turn() {
        let mut location = Location::new(&["page_view GET /a"]);
        location.users =
            ["$cookie_other", "$cookie_user", "guest", "$upstream_http_x"].map(value).into();
        let facts = cookie();
        location.assert(&facts, "page_view ann claim");
        let variables = vec![("cookie_user", "ann"), ("upstream_http_x", "eve")];
        location.assert(&Facts { variables, ..facts.clone() }, "page_view eve answer");
        location.assert(&Facts { variables: vec![], ..facts.clone() }, "page_view guest none");
        let session = Session::Bound(b"bob".into(), Identity::Session);
        location.assert(&Facts { session, ..facts.clone() }, "page_view bob session");
        location.verify = Verify::Session;
        location.assert(&facts, "page_view guest none");
    }

    #[test]
    fn a_claim_that_differs_is_told() {
        let location = Location::new(&["page_view GET /a"]);
        let session = Session::Bound(b"bob".into(), Identity::Session);
        let facts = Facts { session, ..cookie() };
        let settings = location.settings();
        let decision = decide(&facts, &settings, None).unwrap();
        assert_eq!(*decision.whose.claimed, *b"ann");
        let session = Session::Bound(b"ann".into(), Identity::Session);
        let facts = Facts { session, ..cookie() };
        assert!(decide(&facts, &settings, None).unwrap().whose.claimed.is_empty());
        let location = Location::new(&[
            "page_view GET /a user=answer:id user=session",
            "page_edit GET /only user=answer:id",
            "account_login GET /login user=answer:id user=session",
        ]);
        let session = Session::Bound(b"bob".into(), Identity::Session);
        let facts = Facts { session, ..cookie() };
        let claimed = |facts: &Facts| {
            let whose = decide(facts, &location.settings(), None).unwrap().whose;
            String::from_utf8(whose.claimed.into_owned()).unwrap()
        };
        assert_eq!(claimed(&facts), "ann");
        let answered = Facts { answer: vec![("id", Found::Value("eve"))], ..facts };
        assert_eq!(claimed(&answered), "ann");
        assert_eq!(claimed(&Facts { path: "/only", ..answered.clone() }), "ann");
        // An old cookie of somebody else is ordinary at a login.
        assert_eq!(claimed(&Facts { path: "/login", ..answered }), "");
    }

    #[test]
    fn the_account_of_a_login() {
        let zone = anonymous(1 << 20).unwrap();
        let known = zone.known_accounts(&zone.keys());
        let accounts = Accounts { known: &known, realm: b"", time_ms: 1 };
        let set = |rules: &[&'static str]| Location::new(rules);
        let location = set(&[
            "account_login POST /login status=2xx body=json user=answer:id user=body:name",
            "account_login_fail POST /login status=401 body=json user=body:name first_step=answer:why=mfa first_step=!body:token",
            "account_login POST /sure status=2xx body=json user=body:name confirmed=body",
            "account_login POST /named status=2xx body=json user=body:name confirmed=body unknown=send",
            "account_login_fail POST /send body=json user=body:name unknown=send",
            "account_login_fail POST /omit body=json user=body:name unknown=omit anonymous=on",
            "account_login_fail POST /basic status=401 user=basic",
            "page_view POST /basic user=basic",
            "account_login_fail POST /only user=basic",
        ]);
        let settings = location.settings();
        let named = |path, status, name| Facts {
            method: "POST",
            path,
            status,
            body: vec![("name", name)],
            ..Facts::default()
        };
        let user = |facts: &Facts| {
            let whose = decide(facts, &settings, Some(accounts)).unwrap().whose;
            (String::from_utf8(whose.user.into_owned()).unwrap(), whose.identity)
        };
        let failed = named("/login", 401, Found::Value("ann"));
        let (alias, identity) = user(&failed);
        assert!(alias.starts_with("unknown-") && alias.len() == 24, "{alias}");
        assert_eq!(identity, Identity::Claim);
        // A name in the body alone is nobody's login.
        assert_eq!(
            user(&named("/login", 200, Found::Value("ann"))),
            (String::new(), Identity::None)
        );
        let sure = named("/sure", 200, Found::Value("eve"));
        assert_eq!(user(&sure), ("eve".into(), Identity::Claim));
        let good = Facts {
            answer: vec![("id", Found::Value("u1"))],
            ..named("/login", 200, Found::Value("ann"))
        };
        assert_eq!(user(&good), ("u1".into(), Identity::Answer));
        assert_eq!(user(&failed), ("u1".into(), Identity::Claim));
        assert_eq!(user(&named("/sure", 200, Found::Value("ann"))), ("u1".into(), Identity::Claim));
        for (name, expected) in [
            (Found::Absent, "unknown-unreadable"),
            (Found::Unreadable, "unknown-unreadable"),
            (Found::Value(" "), "unknown-unreadable"),
            (Found::Unread, "unknown-unread"),
        ] {
            assert_eq!(user(&named("/login", 401, name)), (expected.into(), Identity::None));
        }
        assert_eq!(user(&named("/send", 401, Found::Value("bob"))).0, "bob");
        // Where no answer tells, a name that the application has taken is the user; what one tells stays.
        let zoe = named("/named", 200, Found::Value(" Zoe"));
        assert_eq!(user(&zoe), ("Zoe".into(), Identity::Claim));
        assert_eq!(user(&named("/login", 401, Found::Value("zoe"))).0, "Zoe");
        assert_eq!(user(&named("/named", 200, Found::Value("ann"))).0, "u1");
        assert_eq!(user(&failed).0, "u1");
        assert_eq!(user(&named("/omit", 401, Found::Value("bob"))).0, "");
        assert_eq!(user(&named("/omit", 401, Found::Unreadable)).0, "");
        // `u2:x`
        let basic = Facts {
            headers: vec![("Authorization", "Basic dTI6eA==")],
            ..named("/basic", 401, Found::Absent)
        };
        assert!(user(&basic).0.starts_with("unknown-"), "{basic:?}");
        // A known session's user is refused, not the account beside it.
        let session = Session::Bound(b"ann".into(), Identity::Session);
        let known = Facts { session, path: "/only", ..basic.clone() };
        assert_eq!(user(&known), ("ann".into(), Identity::Session));
        assert!(decide(&known, &settings, Some(accounts)).unwrap().whose.account.is_none());
        let session = Session::Unknown(b"session-1".into());
        let unknown = Facts { session, ..basic.clone() };
        assert!(user(&unknown).0.starts_with("unknown-"), "{unknown:?}");
        assert_eq!(user(&Facts { status: 200, ..basic }), ("u2".into(), Identity::Claim));

        let is_first = |facts: &Facts| decide(facts, &settings, None).unwrap().is_first_step;
        let mfa = Facts { answer: vec![("why", Found::Value("mfa"))], ..failed.clone() };
        assert!(is_first(&mfa) && !is_first(&failed));
        let body = vec![("name", Found::Value("ann")), ("token", Found::Value("123456"))];
        assert!(!is_first(&Facts { body, ..mfa.clone() }));
        // Perhaps there is a second factor.
        for token in [Found::Unreadable, Found::Unread] {
            let body = vec![("name", Found::Value("ann")), ("token", token)];
            assert!(!is_first(&Facts { body, ..mfa.clone() }), "{token:?}");
        }
    }

    #[test]
    fn what_the_client_says_about_its_case_and_quotes() {
        let location = Location::new(&["page_view GET /a"]);
        let facts = Facts { variables: vec![("cookie_user", "\"An%6e\"")], ..cookie() };
        location.assert(&facts, "page_view Ann claim");
        let settings = Settings { user_case: false, ..location.settings() };
        assert_eq!(*decide(&facts, &settings, None).unwrap().whose.user, *b"ann");
    }
}
