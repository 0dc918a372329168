//! The module's configuration, and how inner levels inherit it.

use core::ffi::c_char;
use core::ptr;
use std::cell::OnceCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use nginx_sys::{
    NGX_CONF_UNSET, ngx_conf_t, ngx_cycle_t, ngx_flag_t, ngx_http_core_srv_conf_t, ngx_str_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK, Status};
use ngx::http::{HttpModuleMainConf as _, HttpModuleServerConf as _, NgxHttpCoreModule};
use tirreno_pipeline::capture::decision::{Settings, Verify};
use tirreno_pipeline::capture::known_accounts::KnownAccounts;
use tirreno_pipeline::capture::redact::{Redaction, SecretSegments};
use tirreno_pipeline::capture::rule::Place;
use tirreno_pipeline::config::TargetConfig;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::identity::keys::{Keys, TokenHash};
use tirreno_pipeline::identity::lookup::LookupConfig;
use tirreno_pipeline::shm::zone::Zone;

use self::ext::ConfExt as _;
use self::realm::ServerRealm;
use self::rule::{Entry, Known, RuleSet, Token, Value};
use self::value::ComplexValue;
use crate::TirrenoModule;

mod access;
pub(crate) mod block;
pub(crate) mod ext;
pub(crate) mod realm;
pub(crate) mod rule;
pub(crate) mod value;

/// What the `http` block holds.
pub(crate) struct MainConf {
    /// The cycle that it belongs to.
    pub(crate) cycle: *mut ngx_cycle_t,
    /// The configured targets; those that are switched off are not among them.
    pub(crate) targets: Vec<TargetConfig>,
    /// The names of all targets, also of those that are switched off.
    pub(crate) names: Vec<String>,
    /// The targets that write to standard output, and where each stands.
    pub(crate) consoles: Vec<(String, Place)>,
    /// `tirreno_zone`, and where it stands.
    pub(crate) zone_size: Option<usize>,
    pub(crate) zone_place: Option<Place>,
    /// The shared memory, once nginx has made it.
    pub(crate) zone: Option<Zone>,
    /// Where `tirreno` is switched on, and whether a request there can have a user.
    enabled: Vec<(Rc<Place>, bool)>,
    /// Where `tirreno_verify session` stands, and whether there is a `tirreno_session` for it.
    verified: Vec<(Rc<Place>, bool)>,
    /// Where `tirreno_user` believes the client, and whether `tirreno_verify` asks for more evidence.
    believed: Vec<(Rc<Place>, bool)>,
    /// Where `tirreno_user` stands, and whether `tirreno` is on in any location that inherits it.
    users: Vec<(Rc<Place>, bool)>,
    /// Servers (by the address of their configuration) whose `tirreno_session` has no realm, and whether the
    /// log was told.
    unrealmed: Vec<(*const ngx_http_core_srv_conf_t, Rc<Place>, bool)>,
    /// Whether any rule has `bind=`, or any location `tirreno_lookup`.
    learns_sessions: bool,
    /// Whether any rule has `session=required`.
    requires_sessions: bool,
    /// Rules that were read.
    pub(crate) known: Known,
    /// `tirreno_state`, and where it stands.
    pub(crate) state: Option<(PathBuf, Place)>,
    /// The state file's path, once it is resolved.
    pub(crate) state_file: Option<PathBuf>,
    /// The keys for hashes of tokens and names, once there is a zone.
    pub(crate) keys: Option<Keys>,
    /// The accounts that are known, once there is a zone.
    pub(crate) accounts: Option<KnownAccounts>,
    /// `tirreno_identity`.
    pub(crate) lookups: Vec<LookupConfig>,
    /// The value that marks the module's own requests to applications.
    pub(crate) lookup_mark: String,
    /// The realms of the servers.
    pub(crate) realms: Vec<ServerRealm>,
    /// Rule sets with secret segments, and the path prefix of each.
    redacting: Vec<(ngx_str_t, Rc<RuleSet>)>,
    /// The secret segments of all rule sets: a Referer may belong to any server.
    pub(crate) secret_segments: Option<SecretSegments>,
    /// Indexes of nginx's variables.
    pub(crate) request_id: usize,
    pub(crate) accept_language: usize,
    /// The targets as the threads take them, slots filled in.
    pub(crate) running: Option<Arc<[TargetConfig]>>,
}

impl Default for MainConf {
    fn default() -> Self {
        Self {
            cycle: ptr::null_mut(),
            targets: Vec::new(),
            names: Vec::new(),
            consoles: Vec::new(),
            zone_size: None,
            zone_place: None,
            zone: None,
            enabled: Vec::new(),
            verified: Vec::new(),
            believed: Vec::new(),
            users: Vec::new(),
            unrealmed: Vec::new(),
            learns_sessions: false,
            requires_sessions: false,
            known: Known::default(),
            redacting: Vec::new(),
            secret_segments: None,
            state: None,
            state_file: None,
            keys: None,
            accounts: None,
            lookups: Vec::new(),
            lookup_mark: String::new(),
            realms: Vec::new(),
            request_id: 0,
            accept_language: 0,
            running: None,
        }
    }
}

impl MainConf {
    /// Whether the module can learn the user of a session: by `bind=` or by a lookup.
    pub(crate) fn learns_sessions(&self) -> bool {
        self.learns_sessions
    }

    /// Whether sessions can identify users: the module learns their users, or a session that it does not know
    /// stands for its user.
    pub(crate) fn uses_sessions(&self) -> bool {
        self.learns_sessions || self.requires_sessions
    }

    /// Size of the shared memory in bytes, if it was set.
    pub(crate) fn zone_size(&self) -> Option<usize> {
        self.zone_size
    }
}

/// A name or path in a directive, and where it stands.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// What a location holds; `None` is inherited.
pub(crate) struct LocationConf {
    /// `tirreno`, and where it stands.
    pub(crate) enabled: Option<(ComplexValue, Rc<Place>)>,
    /// `tirreno_targets`: names, and where they stand.
    pub(crate) target_names: Option<Rc<(Vec<ngx_str_t>, Place)>>,
    /// The same targets as a bit mask over [`MainConf::targets`]; all of them if nothing is set.
    targets: u32,
    /// `tirreno_user`, and where it stands.
    pub(crate) users: Option<(Rc<[Value]>, Rc<Place>)>,
    /// `tirreno_session`, and where it stands.
    pub(crate) sessions: Option<(Rc<[Token]>, Rc<Place>)>,
    /// The place of another `tirreno_session` that a file included before set on the same level.
    pub(crate) earlier_session: Option<Rc<Place>>,
    pub(crate) ip: Option<ComplexValue>,
    pub(crate) params: Option<Rc<Vec<(Param, Value)>>>,
    /// `ngx_conf_set_flag_slot` fills these.
    pub(crate) anonymous: ngx_flag_t,
    pub(crate) user_case: ngx_flag_t,
    /// The `tirreno_event` of this level, and whether those of outer levels apply, too.
    pub(crate) own_rules: Vec<Rc<Entry>>,
    pub(crate) cut_rules: bool,
    /// All rules that apply here. The `http` block inherits none: its set is made when it is needed.
    rules: OnceCell<Option<Rc<RuleSet>>>,
    /// `tirreno_default_event`: the type, or `None` for `off`.
    pub(crate) default_event: Option<Option<EventType>>,
    pub(crate) event_prefix: Option<ngx_str_t>,
    /// `tirreno_verify`, whether only as a dry run, and where it stands.
    pub(crate) verify: Option<(Verify, bool, Rc<Place>)>,
    pub(crate) realm: Option<ngx_str_t>,
    /// The server's realm, found when it is needed.
    default_realm: OnceCell<Box<[u8]>>,
    /// The hash of the realm's tokens, made when it is needed.
    tokens: OnceCell<TokenHash>,
    pub(crate) lookup: Option<Rc<Named>>,
    /// `tirreno_url`: whether `page`.
    pub(crate) url_page: Option<bool>,
    /// The `tirreno_redact` of this level, and whether the outer levels' and the built-in names apply, too.
    pub(crate) own_secrets: Vec<String>,
    pub(crate) cut_secrets: bool,
    /// All names that apply here, besides the built-in ones; `None` if redaction is off.
    secrets: OnceCell<Option<Rc<Secrets>>>,
    /// Where `tirreno_status` stands.
    pub(crate) status: Option<Place>,
    /// Whether the log was told that a file is included twice.
    pub(crate) includes_twice: bool,
}

/// What `tirreno_redact` hides.
struct Secrets {
    /// Besides the built-in ones.
    names: Vec<String>,
    redaction: Redaction,
}

impl Secrets {
    fn new(own: &[String], outer: &[String]) -> Rc<Self> {
        let names = [own, outer].concat();
        let redaction = Redaction::new(names.iter().map(String::as_str));
        Rc::new(Self { names, redaction })
    }
}

impl Default for LocationConf {
    fn default() -> Self {
        Self {
            enabled: None,
            target_names: None,
            targets: u32::MAX,
            users: None,
            sessions: None,
            earlier_session: None,
            ip: None,
            params: None,
            anonymous: NGX_CONF_UNSET as ngx_flag_t,
            user_case: NGX_CONF_UNSET as ngx_flag_t,
            own_rules: Vec::new(),
            cut_rules: false,
            rules: OnceCell::new(),
            default_event: None,
            event_prefix: None,
            verify: None,
            realm: None,
            default_realm: OnceCell::new(),
            tokens: OnceCell::new(),
            lookup: None,
            url_page: None,
            own_secrets: Vec::new(),
            cut_secrets: false,
            secrets: OnceCell::new(),
            status: None,
            includes_twice: false,
        }
    }
}

impl LocationConf {
    /// `tirreno`; `None` if it was not set.
    pub(crate) fn enabled(&self) -> Option<&ComplexValue> {
        self.enabled.as_ref().map(|(value, _)| value)
    }

    /// The targets as a bit mask over [`MainConf::targets`].
    pub(crate) fn targets(&self) -> u32 {
        self.targets
    }

    /// The settings that a decision needs.
    pub(crate) fn settings(&self) -> Settings<'_, ComplexValue> {
        let given = |wanted| self.params().iter().find(|(param, _)| *param == wanted);
        Settings {
            rules: self.rules(),
            default_event: self.default_event.unwrap_or(Some(EventType::PageView)),
            users: self.users.as_ref().map(|(users, _)| users.as_ref()).unwrap_or_default(),
            given_user: given(Param::UserName).map(|(_, value)| value),
            given_kind: given(Param::EventType).map(|(_, value)| value),
            anonymous: self.anonymous == 1,
            verify: self.verify(),
            user_case: self.user_case(),
            has_session: !self.sessions().is_empty(),
        }
    }

    /// `tirreno_session`; the values of one token are joined.
    pub(crate) fn sessions(&self) -> &[Token] {
        self.sessions.as_ref().map(|(tokens, _)| tokens.as_ref()).unwrap_or_default()
    }

    /// `tirreno_realm`; without it, the realm of the server, which `of_server` finds.
    pub(crate) fn realm<'s>(&self, of_server: impl FnOnce() -> &'s [u8]) -> &[u8] {
        match &self.realm {
            Some(realm) => realm.as_bytes(),
            None => self.default_realm.get_or_init(|| of_server().into()),
        }
    }

    /// The hash of the realm's tokens, which `new` makes when it is needed.
    pub(crate) fn tokens(&self, new: impl FnOnce() -> TokenHash) -> &TokenHash {
        self.tokens.get_or_init(new)
    }

    /// The index of the `tirreno_identity` block that `tirreno_lookup` names.
    pub(crate) fn lookup_place(&self, main: &MainConf) -> Option<usize> {
        let name = &self.lookup.as_ref()?.name;
        main.lookups.iter().position(|known| known.name == *name)
    }

    /// `tirreno_user_case`: whether case tells users apart.
    pub(crate) fn user_case(&self) -> bool {
        self.user_case != 0
    }

    /// The mode of `tirreno_verify` if it is a dry run.
    pub(crate) fn dry_run(&self) -> Option<Verify> {
        self.verify.as_ref().filter(|(_, dry_run, _)| *dry_run).map(|(verify, ..)| *verify)
    }

    /// `tirreno_url`: whether `page`.
    pub(crate) fn url_is_page(&self) -> bool {
        self.url_page == Some(true)
    }

    /// `tirreno_ip`.
    pub(crate) fn ip(&self) -> Option<&ComplexValue> {
        self.ip.as_ref()
    }

    /// `tirreno_param`.
    pub(crate) fn params(&self) -> &[(Param, Value)] {
        self.params.as_ref().map(|p| p.as_slice()).unwrap_or_default()
    }

    /// `tirreno_event` of this level and the outer ones.
    pub(crate) fn rules(&self) -> Option<&RuleSet> {
        self.rule_set().map(Rc::as_ref)
    }

    fn rule_set(&self) -> Option<&Rc<RuleSet>> {
        self.rules.get_or_init(|| RuleSet::new(&self.own_rules, None)).as_ref()
    }

    /// `tirreno_event_prefix`, without a slash at its end.
    pub(crate) fn event_prefix(&self) -> &[u8] {
        self.event_prefix.as_ref().map_or(&[], |prefix| prefix.as_bytes())
    }

    /// Whether a claim of the client needs further evidence.
    pub(crate) fn verifies(&self) -> bool {
        self.verify() != Verify::Off
    }

    /// `tirreno_verify`; a dry run changes nothing.
    fn verify(&self) -> Verify {
        match &self.verify {
            Some((verify, false, _)) => *verify,
            _ => Verify::Off,
        }
    }

    /// `tirreno_redact`; `None` if it is off.
    pub(crate) fn redaction(&self) -> Option<&Redaction> {
        self.secrets().map(|secrets| &secrets.redaction)
    }

    fn secrets(&self) -> Option<&Rc<Secrets>> {
        let new = || (!self.cut_secrets).then(|| Secrets::new(&self.own_secrets, &[]));
        self.secrets.get_or_init(new).as_ref()
    }

    /// Inherits from `parent` what is not set here, and checks the result.
    pub(crate) fn inherit(&mut self, cf: &mut ngx_conf_t, parent: &Self) -> *mut c_char {
        let Some(main) = TirrenoModule::main_conf_mut(cf) else { return NGX_CONF_ERROR };
        if self.enabled.is_none() {
            self.enabled.clone_from(&parent.enabled);
        }
        if self.target_names.is_none() {
            self.target_names.clone_from(&parent.target_names);
        }
        if let Some((names, place)) = self.target_names.as_deref() {
            match main.select(names) {
                Ok(_) if names.len() > 1 && names.iter().any(|n| n.as_bytes() == b"all") => {
                    return cf.error_at(
                        place,
                        "\"all\" in \"tirreno_targets\" directive is every target, remove the other names,",
                    );
                }
                Ok(targets) => self.targets = targets,
                Err(name) => {
                    return cf.error_at(
                        place,
                        format_args!(
                            "unknown target \"{name}\" in \"tirreno_targets\" directive, no \
                             \"tirreno_target\" has this name"
                        ),
                    );
                }
            }
        }
        let has_users = self.users.is_some();
        if !has_users {
            self.users.clone_from(&parent.users);
        }
        if self.sessions.is_none() {
            self.sessions.clone_from(&parent.sessions);
            self.earlier_session.clone_from(&parent.earlier_session);
        }
        if self.ip.is_none() {
            self.ip.clone_from(&parent.ip);
        }
        if self.params.is_none() {
            self.params.clone_from(&parent.params);
        }
        if self.anonymous == NGX_CONF_UNSET as ngx_flag_t {
            self.anonymous = if parent.anonymous == 1 { 1 } else { 0 };
        }
        if self.user_case == NGX_CONF_UNSET as ngx_flag_t {
            self.user_case = if parent.user_case == 0 { 0 } else { 1 };
        }
        self.default_event = self.default_event.or(parent.default_event);
        self.event_prefix = self.event_prefix.or(parent.event_prefix);
        self.realm = self.realm.or(parent.realm);
        self.url_page = self.url_page.or(parent.url_page);
        if self.verify.is_none() {
            self.verify.clone_from(&parent.verify);
        }
        if self.lookup.is_none() {
            self.lookup.clone_from(&parent.lookup);
        }
        self.inherit_rules(cf, main, parent);
        self.inherit_secrets(parent);
        let is_on = |conf: &Self| Some(!conf.enabled.as_ref()?.0.is_constant_off());
        if let Some((place, what)) = self.sent_session().filter(|_| is_on(self) != Some(false)) {
            return cf.error_at(
                &place,
                format_args!(
                    "{what} puts the session's token into events, which \"tirreno_session\" names: take \
                     another value, or a part of it by a regular expression with a group,"
                ),
            );
        }
        if let Some((_, place)) = &self.users {
            // An administrator who writes `tirreno off` beside it needs no warning.
            let beside = if has_users { is_on(self) } else { is_on(parent) };
            note(&mut main.users, place, is_on(self) == Some(true) || beside == Some(false));
        }
        if let Some(place) = &self.status
            && !crate::status::is_handler(cf)
        {
            return cf.error_at(
                place,
                "\"tirreno_status\" does nothing, because the location has another handler such as \"proxy_pass\"",
            );
        }
        if let Some(place) = self.status.as_ref().filter(|_| access::is_open(cf)) {
            cf.warn_at(
                place,
                "everybody can ask for the status, add \"allow\" and \"deny all\", or \"auth_basic\",",
            );
        }
        main.learns_sessions |= self.lookup.is_some() || self.rules().is_some_and(RuleSet::binds);
        main.requires_sessions |= self.rules().is_some_and(RuleSet::requires_sessions);
        if let Some((Verify::Session, _, place)) = &self.verify {
            note(&mut main.verified, place, !self.sessions().is_empty());
        }
        if let Some((value, place)) = &self.enabled
            && !value.is_constant_off()
        {
            note(&mut main.enabled, place, self.may_capture());
            if let Some((users, place)) = &self.users {
                let is_checked =
                    matches!(&self.verify, Some((Verify::Answer | Verify::Session, ..)));
                let is_claim = |user: &Value| user.is_of_client();
                note(&mut main.believed, place, is_checked || !users.iter().any(is_claim));
            }
            if let Some((_, place)) = self.sessions.as_ref().filter(|_| self.realm.is_none()) {
                for place in self.earlier_session.iter().chain([place]) {
                    main.note_session(cf, place);
                }
            }
        }
        if let Some(lookup) = &self.lookup
            && self.lookup_place(main).is_none()
        {
            return cf.error_at(
                &lookup.place,
                format_args!(
                    "unknown name \"{}\" in \"tirreno_lookup\" directive, no \"tirreno_identity\" has it,",
                    lookup.name
                ),
            );
        }
        if let Some(lookup) = self.lookup.as_ref().filter(|_| self.sessions().is_empty()) {
            return cf.error_at(
                &lookup.place,
                "\"tirreno_lookup\" needs \"tirreno_session\", which says where a request has its \
                 session's token, add it,",
            );
        }
        NGX_CONF_OK
    }

    /// What would put the token of a session into events, and where it, or else `tirreno_session`, stands.
    fn sent_session(&self) -> Option<(Place, &'static str)> {
        let (_, place) = self.sessions.as_ref()?;
        // Of a token that is joined of several values, one alone may well be a name.
        let mut alone = self.sessions().iter().filter(|token| token.len() == 1).flatten();
        alone.find_map(|token| {
            let mut rules = self.rules().into_iter().flat_map(RuleSet::iter);
            if let Some((.., rule)) = rules.find(|(.., rule)| rule.sends(token)) {
                return Some((rule.place.clone(), "a rule"));
            }
            let users = self.users.iter().flat_map(|(users, _)| users.iter());
            let mut values = users.chain(self.params().iter().map(|(_, value)| value));
            let is_sent = values.any(|value| value.sends(token));
            is_sent.then(|| (Place::clone(place), "\"tirreno_user\" or \"tirreno_param\""))
        })
    }

    fn inherit_rules(&mut self, cf: &mut ngx_conf_t, main: &mut MainConf, parent: &Self) {
        if parent.rules.get().is_none() {
            rule::warn_unreachable(cf, &parent.own_rules);
        }
        let outer = parent.rule_set().filter(|_| !self.cut_rules);
        self.rules = OnceCell::from(main.known.set(cf, &self.own_rules, outer));
        if let Some(set) = self.rule_set().filter(|set| set.is_redacting()) {
            let prefix = self.event_prefix.unwrap_or_default();
            let is_it = |(above, known): &(ngx_str_t, Rc<RuleSet>)| {
                Rc::ptr_eq(known, set) && above.as_bytes() == prefix.as_bytes()
            };
            if !main.redacting.iter().any(is_it) {
                main.redacting.push((prefix, set.clone()));
            }
        }
    }

    fn inherit_secrets(&mut self, parent: &Self) {
        let outer = parent.secrets();
        self.secrets = OnceCell::from(match outer {
            _ if self.cut_secrets => None,
            Some(outer) if self.own_secrets.is_empty() => Some(outer.clone()),
            None if self.own_secrets.is_empty() => None,
            outer => {
                let outer = outer.map_or(&[][..], |outer| &outer.names);
                Some(Secrets::new(&self.own_secrets, outer))
            }
        });
    }

    /// Whether requests here can become events: they can have a user, or need none.
    fn may_capture(&self) -> bool {
        if self.rules().is_some_and(RuleSet::may_capture) {
            return true;
        }
        let settings = self.settings();
        let named = match settings.given_user {
            Some(user) => !user.is_nothing(),
            None => settings.users.iter().any(|user| !user.is_nothing()),
        };
        named || settings.anonymous || settings.has_session
    }
}

impl MainConf {
    /// Without a realm, two applications in one server would share accounts and sessions: warns of a second
    /// `tirreno_session` in a server.
    fn note_session(&mut self, cf: &mut ngx_conf_t, place: &Rc<Place>) {
        let Some(server) = NgxHttpCoreModule::server_conf(cf).map(ptr::from_ref) else { return };
        match self.unrealmed.iter_mut().find(|(known, ..)| *known == server) {
            None => self.unrealmed.push((server, place.clone(), false)),
            Some((_, first, said)) if **first != **place && !*said => {
                *said = true;
                cf.warn_at(
                    place,
                    format_args!(
                        "a second \"tirreno_session\" in one server, beside that in {first}: if they are of \
                         two applications, add \"tirreno_realm\" to each,"
                    ),
                );
            }
            Some(_) => {}
        }
    }

    /// Collects the secret segments of all rules.
    pub(crate) fn gather_secret_segments(&mut self) {
        // Inner levels contain the rules of outer ones.
        let mut seen = HashSet::new();
        let rules = self.redacting.iter().flat_map(|(prefix, set)| {
            set.iter().map(move |(_, pattern, rule)| (prefix.as_bytes(), pattern, rule))
        });
        let rules = rules
            .filter(|(prefix, _, rule)| {
                !rule.redact.is_empty() && seen.insert((*prefix, ptr::from_ref(*rule)))
            })
            .map(|(prefix, pattern, rule)| (pattern.clone(), rule.redact.clone(), prefix));
        let rules: Vec<_> = rules.collect();
        self.secret_segments = (!rules.is_empty()).then(|| SecretSegments::new(rules));
    }

    /// Checks what concerns all locations together.
    pub(crate) fn check(&self, cf: &mut ngx_conf_t) -> Result<(), Status> {
        if let Some((place, _)) = self.enabled.first()
            && self.names.is_empty()
        {
            cf.error_at(place, "\"tirreno\" is on, but there is no \"tirreno_target\", add one");
            return Err(Status::NGX_ERROR);
        }
        for (place, _) in self.enabled.iter().filter(|(_, may_capture)| !may_capture) {
            cf.warn_at(
                place,
                "\"tirreno\" is on without \"tirreno_user\" or \"tirreno_anonymous on\", nothing \
                 will be captured",
            );
        }
        for (place, _) in self.users.iter().filter(|(_, is_used)| !is_used) {
            cf.warn_at(place, "\"tirreno_user\" does nothing without \"tirreno on\", add it,");
        }
        for (place, _) in self.believed.iter().filter(|(_, is_fine)| !is_fine) {
            cf.warn_at(
                place,
                "\"tirreno_user\" takes the user from what any client can write, add \"tirreno_verify \
                 session\" or \"answer\", or \"verified\" where nginx has checked it,",
            );
        }
        for (place, has_session) in &self.verified {
            let missing = match (has_session, self.learns_sessions()) {
                (false, _) => {
                    "\"tirreno_session\", which says where a request has its session's token"
                }
                (true, false) => {
                    "a rule with \"bind=\", or \"tirreno_lookup\", which tells whose session it is"
                }
                (true, true) => continue,
            };
            cf.error_at(place, format_args!("\"tirreno_verify session\" needs {missing}, add it,"));
            return Err(Status::NGX_ERROR);
        }
        Ok(())
    }

    /// The targets of these names, as a bit mask.
    fn select(&self, names: &[ngx_str_t]) -> Result<u32, String> {
        let mut targets = 0;
        for name in names {
            let name = name.to_string();
            if name == "all" {
                targets = u32::MAX;
            } else if let Some(i) = self.targets.iter().position(|t| t.name == name) {
                targets |= 1 << i;
            } else if !self.names.contains(&name) {
                return Err(name);
            }
        }
        Ok(targets)
    }
}

/// Many locations inherit what stands in one place: notes whether it has an effect in at least one of them.
fn note(known: &mut Vec<(Rc<Place>, bool)>, place: &Rc<Place>, makes_sense: bool) {
    match known.iter_mut().find(|(known, _)| Rc::ptr_eq(known, place)) {
        Some((_, known)) => *known |= makes_sense,
        None => known.push((place.clone(), makes_sense)),
    }
}
