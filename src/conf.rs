//! The directives: their tables, handlers, and the structures they fill.

use core::ffi::{c_char, c_void};
use core::mem::offset_of;
use core::ptr;
use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_BLOCK, NGX_CONF_FLAG, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE2,
    NGX_CONF_UNSET, NGX_HTTP_LIF_CONF, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET,
    NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF, ngx_command_t,
    ngx_conf_set_flag_slot, ngx_conf_t, ngx_cycle_t, ngx_flag_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK, Status};
use ngx::http::{HttpModuleLocationConf, HttpModuleMainConf, NgxHttpCoreModule};
use ngx::ngx_string;
use tirreno_pipeline::capture::path;
use tirreno_pipeline::capture::redact::Redaction;
use tirreno_pipeline::config::TargetConfig;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::shm::zone::{MAX_TARGETS, Zone};

use self::ext::{ConfExt, DUPLICATE, Place, conf_error, parse_size};
use self::rule::{Entry, RuleSet};
use self::value::{CompileError, Sourced, Value};
use crate::{TirrenoModule, guarded, status};

pub(crate) mod ext;
pub(crate) mod rule;
mod target;
pub(crate) mod value;

/// The default of `tirreno_zone`.
const ZONE_SIZE: usize = 16 << 20;

/// What the `http` block holds.
pub(crate) struct MainConf {
    /// The cycle that it belongs to.
    pub(crate) cycle: *mut ngx_cycle_t,
    /// The configured targets; those that are switched off are not among them.
    pub(crate) targets: Vec<TargetConfig>,
    /// The names of all targets, also of those that are switched off.
    names: Vec<String>,
    /// `tirreno_zone`, and where it stands.
    zone_size: Option<usize>,
    pub(crate) zone_place: Option<Place>,
    /// The shared memory, once nginx has made it.
    pub(crate) zone: Option<Zone>,
    /// Where `tirreno` is switched on, and whether a request there can have a user.
    enabled: Vec<(Rc<Place>, bool)>,
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
            zone_size: None,
            zone_place: None,
            zone: None,
            enabled: Vec::new(),
            request_id: 0,
            accept_language: 0,
            running: None,
        }
    }
}

impl MainConf {
    /// Size of the shared memory in bytes.
    pub(crate) fn zone_size(&self) -> usize {
        self.zone_size.unwrap_or(ZONE_SIZE)
    }
}

/// What a location holds; `None` is inherited.
pub(crate) struct LocationConf {
    /// `tirreno`, and where it stands.
    enabled: Option<(Value, Rc<Place>)>,
    /// `tirreno_targets`: names, and where they stand.
    target_names: Option<Rc<(Vec<ngx_str_t>, Place)>>,
    /// The same by their place in [`MainConf::targets`], a bit each; all where nothing is set.
    targets: u32,
    users: Option<Rc<[Sourced]>>,
    sessions: Option<Rc<[Value]>>,
    ip: Option<Value>,
    params: Option<Rc<Vec<(Param, Sourced)>>>,
    /// `ngx_conf_set_flag_slot` fills it.
    anonymous: ngx_flag_t,
    /// `tirreno_event` of this level, and whether the outer levels' count.
    own_rules: Vec<Entry>,
    cut_rules: bool,
    /// All that count here. That of the `http` block, which inherits nothing, is made when it is needed.
    rules: OnceCell<Option<Rc<RuleSet>>>,
    /// `tirreno_default_event`: the type, or nothing.
    default_event: Option<Option<EventType>>,
    event_prefix: Option<ngx_str_t>,
    verify: Option<bool>,
    /// `tirreno_redact` of this level, and whether the outer levels' and the built-in ones count.
    own_secrets: Vec<String>,
    cut_secrets: bool,
    /// All names that count here, beside the built-in ones; nothing where there is no redaction.
    secrets: OnceCell<Option<Rc<Secrets>>>,
}

/// What `tirreno_redact` hides.
struct Secrets {
    /// Beside the built-in ones.
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
            ip: None,
            params: None,
            anonymous: NGX_CONF_UNSET as ngx_flag_t,
            own_rules: Vec::new(),
            cut_rules: false,
            rules: OnceCell::new(),
            default_event: None,
            event_prefix: None,
            verify: None,
            own_secrets: Vec::new(),
            cut_secrets: false,
            secrets: OnceCell::new(),
        }
    }
}

impl LocationConf {
    /// `tirreno`; nothing where it is off by default.
    pub(crate) fn enabled(&self) -> Option<&Value> {
        self.enabled.as_ref().map(|(value, _)| value)
    }

    /// The targets by their place in [`MainConf::targets`], a bit each.
    pub(crate) fn targets(&self) -> u32 {
        self.targets
    }

    /// `tirreno_user`.
    pub(crate) fn users(&self) -> &[Sourced] {
        self.users.as_deref().unwrap_or_default()
    }

    /// `tirreno_session`.
    pub(crate) fn sessions(&self) -> &[Value] {
        self.sessions.as_deref().unwrap_or_default()
    }

    /// `tirreno_ip`.
    pub(crate) fn ip(&self) -> Option<&Value> {
        self.ip.as_ref()
    }

    /// `tirreno_param`.
    pub(crate) fn params(&self) -> &[(Param, Sourced)] {
        self.params.as_ref().map(|p| p.as_slice()).unwrap_or_default()
    }

    /// `tirreno_anonymous`.
    pub(crate) fn anonymous(&self) -> bool {
        self.anonymous == 1
    }

    /// `tirreno_event` of this level and the outer ones.
    pub(crate) fn rules(&self) -> Option<&RuleSet> {
        self.rule_set().map(Rc::as_ref)
    }

    fn rule_set(&self) -> Option<&Rc<RuleSet>> {
        self.rules.get_or_init(|| RuleSet::new(&self.own_rules, None)).as_ref()
    }

    /// `tirreno_default_event`.
    pub(crate) fn default_event(&self) -> Option<EventType> {
        self.default_event.unwrap_or(Some(EventType::PageView))
    }

    /// `tirreno_event_prefix`, without a slash at its end.
    pub(crate) fn event_prefix(&self) -> &[u8] {
        self.event_prefix.as_ref().map_or(&[], |prefix| prefix.as_bytes())
    }

    /// Whether `tirreno_verify answer`.
    pub(crate) fn verifies(&self) -> bool {
        self.verify == Some(true)
    }

    /// `tirreno_redact`; nothing where it is off.
    pub(crate) fn redaction(&self) -> Option<&Redaction> {
        self.secrets().map(|secrets| &secrets.redaction)
    }

    fn secrets(&self) -> Option<&Rc<Secrets>> {
        let new = || (!self.cut_secrets).then(|| Secrets::new(&self.own_secrets, &[]));
        self.secrets.get_or_init(new).as_ref()
    }

    /// Takes from `parent` what is not set here, and checks what is.
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
        if self.users.is_none() {
            self.users.clone_from(&parent.users);
        }
        if self.sessions.is_none() {
            self.sessions.clone_from(&parent.sessions);
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
        self.default_event = self.default_event.or(parent.default_event);
        self.event_prefix = self.event_prefix.or(parent.event_prefix);
        self.verify = self.verify.or(parent.verify);
        self.inherit_rules(cf, parent);
        self.inherit_secrets(parent);
        if let Some((value, place)) = &self.enabled
            && !value.is_constant_off()
        {
            main.note_enabled(place, self.may_capture());
        }
        NGX_CONF_OK
    }

    fn inherit_rules(&mut self, cf: &mut ngx_conf_t, parent: &Self) {
        if parent.rules.get().is_none() {
            RuleSet::check(cf, &parent.own_rules);
        }
        RuleSet::check(cf, &self.own_rules);
        let outer = parent.rule_set().filter(|_| !self.cut_rules);
        self.rules = OnceCell::from(if self.own_rules.is_empty() {
            outer.cloned()
        } else {
            RuleSet::new(&self.own_rules, outer)
        });
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

    /// Whether a request can have a user, or needs none.
    fn may_capture(&self) -> bool {
        if self.rules().is_some_and(RuleSet::may_capture) {
            return true;
        }
        let given = self.params().iter().find(|(param, _)| *param == Param::UserName);
        let named = match given {
            Some((_, user)) => !user.value.is_constant_empty(),
            None => self.users().iter().any(|user| !user.value.is_constant_empty()),
        };
        named || self.anonymous()
    }
}

impl MainConf {
    /// One `tirreno on` holds for many locations: it makes sense if it does for one of them.
    fn note_enabled(&mut self, place: &Rc<Place>, may_capture: bool) {
        match self.enabled.iter_mut().find(|(known, _)| Rc::ptr_eq(known, place)) {
            Some((_, known)) => *known |= may_capture,
            None => self.enabled.push((place.clone(), may_capture)),
        }
    }

    /// Checks what all locations together must fulfil.
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
        Ok(())
    }

    /// The targets of those names, a bit each.
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

const ANYWHERE: u32 = NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;

type Handler =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

const fn command(name: ngx_str_t, type_: u32, set: Handler, conf: usize) -> ngx_command_t {
    ngx_command_t {
        name,
        type_: type_ as ngx_uint_t,
        set: Some(set),
        conf,
        offset: 0,
        post: ptr::null_mut(),
    }
}

/// The module's directives.
pub(crate) static mut COMMANDS: [ngx_command_t; 16] = [
    command(
        ngx_string!("tirreno_target"),
        // TAKE1 and NOARGS together: the name may be left out.
        NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
        cmd_target,
        NGX_HTTP_MAIN_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_zone"),
        NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1,
        cmd_zone,
        NGX_HTTP_MAIN_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno"),
        ANYWHERE | NGX_HTTP_LIF_CONF | NGX_CONF_TAKE1,
        cmd_enable,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_targets"),
        ANYWHERE | NGX_CONF_1MORE,
        cmd_targets,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_user"),
        ANYWHERE | NGX_CONF_1MORE,
        cmd_user,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_session"),
        ANYWHERE | NGX_CONF_1MORE,
        cmd_session,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(ngx_string!("tirreno_ip"), ANYWHERE | NGX_CONF_TAKE1, cmd_ip, NGX_HTTP_LOC_CONF_OFFSET),
    command(
        ngx_string!("tirreno_param"),
        ANYWHERE | NGX_CONF_TAKE2,
        cmd_param,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    ngx_command_t {
        offset: offset_of!(LocationConf, anonymous),
        ..command(
            ngx_string!("tirreno_anonymous"),
            ANYWHERE | NGX_CONF_FLAG,
            ngx_conf_set_flag_slot,
            NGX_HTTP_LOC_CONF_OFFSET,
        )
    },
    command(
        ngx_string!("tirreno_event"),
        ANYWHERE | NGX_CONF_1MORE,
        cmd_event,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_default_event"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_default_event,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_event_prefix"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_event_prefix,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_verify"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_verify,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_redact"),
        ANYWHERE | NGX_CONF_1MORE,
        cmd_redact,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_status"),
        NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS,
        cmd_status,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    ngx_command_t::empty(),
];

/// Makes an nginx handler of a function over typed configurations.
macro_rules! handler {
    ($name:ident, $conf:ty, |$cf:ident, $config:ident, $args:ident| $body:block) => {
        extern "C" fn $name(
            cf: *mut ngx_conf_t,
            _cmd: *mut ngx_command_t,
            conf: *mut c_void,
        ) -> *mut c_char {
            guarded(NGX_CONF_ERROR, || {
                // SAFETY: nginx passes the configuration that the command's table names, made by
                // this module.
                let ($cf, $config) = unsafe { (&mut *cf, &mut *conf.cast::<$conf>()) };
                let $args = $cf.args();
                $body
            })
        }
    };
}

handler!(cmd_target, MainConf, |cf, main, args| {
    let name = args.get(1).map_or_else(|| "tirreno".into(), |name| name.to_string());
    if main.names.contains(&name) {
        return cf.error(format_args!(
            "duplicate target \"{name}\", write \"tirreno_target NAME {{\" with another name"
        ));
    }
    if main.names.len() == MAX_TARGETS {
        return cf.error(format_args!("too many targets, there may be {MAX_TARGETS}"));
    }
    match target::read(cf, &name) {
        Ok(target) => {
            let file = target.as_ref().and_then(TargetConfig::file);
            let is_same = |known: &&TargetConfig| known.file().is_some() && known.file() == file;
            if let Some(known) = main.targets.iter().find(is_same) {
                return cf.error(format_args!(
                    "target \"{name}\" has the same \"path\" as target \"{}\"",
                    known.name
                ));
            }
            main.names.push(name);
            main.targets.extend(target);
            NGX_CONF_OK
        }
        Err(error) => error,
    }
});

handler!(cmd_zone, MainConf, |cf, main, args| {
    if main.zone_size.is_some() {
        return DUPLICATE;
    }
    let least = Zone::min_size(1);
    match parse_size(args[1]) {
        None => cf.error(format_args!(
            "invalid value \"{}\" in \"tirreno_zone\" directive, it must be a size like \"16m\"",
            args[1]
        )),
        Some(size) if size < least => cf.error(format_args!(
            "invalid value \"{}\" in \"tirreno_zone\" directive, it must be at least \"{}k\"",
            args[1],
            least.div_ceil(1024)
        )),
        Some(size) => {
            main.zone_size = Some(size);
            main.zone_place = Some(cf.place());
            NGX_CONF_OK
        }
    }
});

handler!(cmd_enable, LocationConf, |cf, location, args| {
    if location.enabled.is_some() {
        return DUPLICATE;
    }
    let Ok(value) = Value::compile(cf, args[1]) else { return NGX_CONF_ERROR };
    location.enabled = Some((value, Rc::new(cf.place())));
    NGX_CONF_OK
});

handler!(cmd_targets, LocationConf, |cf, location, args| {
    if location.target_names.is_some() {
        return DUPLICATE;
    }
    location.target_names = Some(Rc::new((args[1..].to_vec(), cf.place())));
    NGX_CONF_OK
});

handler!(cmd_user, LocationConf, |cf, location, args| {
    let mut user = |text: &ngx_str_t| Ok(Sourced::new(Value::compile(cf, *text)?, text.as_bytes()));
    let values: Result<Rc<[_]>, CompileError> = args[1..].iter().map(&mut user).collect();
    let Ok(values) = values else { return NGX_CONF_ERROR };
    location.users = Some(values);
    NGX_CONF_OK
});

handler!(cmd_session, LocationConf, |cf, location, args| {
    let values = args[1..].iter().map(|text| Value::compile(cf, *text));
    let values: Result<Rc<[_]>, CompileError> = values.collect();
    let Ok(values) = values else { return NGX_CONF_ERROR };
    location.sessions = Some(values);
    NGX_CONF_OK
});

handler!(cmd_ip, LocationConf, |cf, location, args| {
    if location.ip.is_some() {
        return DUPLICATE;
    }
    warn_if_forgeable(cf, args[1]);
    let Ok(value) = Value::compile(cf, args[1]) else { return NGX_CONF_ERROR };
    location.ip = Some(value);
    NGX_CONF_OK
});

/// A request's header is no source of an address: the client writes it.
fn warn_if_forgeable(cf: &mut ngx_conf_t, address: ngx_str_t) {
    let address = address.to_string().to_ascii_lowercase();
    if address.contains("$http_") || address.contains("${http_") {
        cf.warn(format_args!(
            "\"{}\" takes the address from a header that any client can forge, remove it and use \
             \"set_real_ip_from\" and \"real_ip_header\" of the realip module",
            cf.args()[0]
        ));
    }
}

handler!(cmd_param, LocationConf, |cf, location, args| {
    let Some(param) = Param::from_name(args[1].as_bytes()) else {
        return cf.error(format_args!(
            "unknown parameter \"{}\" in \"tirreno_param\" directive, it must be one of {}",
            args[1],
            Param::ALL.map(Param::name).join(", ")
        ));
    };
    let params = location.params.get_or_insert_default();
    if params.iter().any(|(known, _)| *known == param) {
        return cf.error(format_args!(
            "duplicate parameter \"{}\" in \"tirreno_param\" directive",
            args[1]
        ));
    }
    if param == Param::IpAddress {
        warn_if_forgeable(cf, args[2]);
    }
    let Ok(value) = Value::compile(cf, args[2]) else { return NGX_CONF_ERROR };
    if let Some(constant) = value.constant()
        && param == Param::EventType
        && !constant.is_empty()
        && EventType::from_name(constant).is_none()
    {
        return cf.error(format_args!(
            "unknown event type \"{}\" in \"tirreno_param\" directive, it must be one of {}",
            args[2],
            EventType::ALL.map(EventType::name).join(", ")
        ));
    }
    match Rc::get_mut(params) {
        Some(params) => params.push((param, Sourced::new(value, args[2].as_bytes()))),
        None => return NGX_CONF_ERROR,
    }
    NGX_CONF_OK
});

handler!(cmd_event, LocationConf, |cf, location, args| {
    if let [_, none] = args
        && none.as_bytes() == b"none"
    {
        location.cut_rules = true;
        return NGX_CONF_OK;
    }
    match rule::read(cf, &args[1..]) {
        Ok(entry) => {
            location.own_rules.push(entry);
            NGX_CONF_OK
        }
        Err(error) => cf.error(format_args!("{error} in \"tirreno_event\" directive")),
    }
});

handler!(cmd_default_event, LocationConf, |cf, location, args| {
    let event = EventType::from_name(args[1].as_bytes());
    if event.is_none() && args[1].as_bytes() != b"off" {
        let error = rule::unknown_type(args[1]);
        return cf.error(format_args!("{error} in \"tirreno_default_event\" directive"));
    }
    location.default_event = Some(event);
    NGX_CONF_OK
});

handler!(cmd_event_prefix, LocationConf, |cf, location, args| {
    if location.event_prefix.is_some() {
        return DUPLICATE;
    }
    let mut prefix = args[1];
    let path = prefix.as_bytes();
    // No other one is ever the beginning of a normalized path.
    if !path.starts_with(b"/") || path::normalize(path, &mut Vec::new()) != path {
        return cf.error(format_args!(
            "invalid value \"{prefix}\" in \"tirreno_event_prefix\" directive, it must be a path like \
             \"/chat\", decoded and without \"//\", \"?\" or segments \".\" and \"..\""
        ));
    }
    while prefix.as_bytes().ends_with(b"/") {
        prefix.len -= 1;
    }
    location.event_prefix = Some(prefix);
    NGX_CONF_OK
});

handler!(cmd_verify, LocationConf, |cf, location, args| {
    location.verify = Some(match args[1].as_bytes() {
        b"off" => false,
        b"answer" => true,
        _ => {
            return cf.error(format_args!(
                "invalid value \"{}\" in \"tirreno_verify\" directive, it must be \"off\" or \
                 \"answer\"",
                args[1]
            ));
        }
    });
    NGX_CONF_OK
});

handler!(cmd_redact, LocationConf, |cf, location, args| {
    let names = &args[1..];
    if names.iter().any(|name| name.as_bytes() == b"off") {
        if names.len() > 1 || !location.own_secrets.is_empty() {
            return cf.error("\"tirreno_redact off\" cannot stand beside names");
        }
        location.cut_secrets = true;
    } else if location.cut_secrets {
        return cf.error("\"tirreno_redact off\" cannot stand beside names");
    } else {
        location.own_secrets.extend(names.iter().map(ToString::to_string));
    }
    NGX_CONF_OK
});

handler!(cmd_status, LocationConf, |cf, _location, _args| {
    let Some(core) = NgxHttpCoreModule::location_conf_mut(cf) else { return NGX_CONF_ERROR };
    if core.handler.is_some() {
        return conf_error(
            c"is duplicate, or the location has another handler such as \"proxy_pass\"",
        );
    }
    core.handler = Some(status::handler);
    NGX_CONF_OK
});
