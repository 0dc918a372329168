//! The directives, one row each: where it may stand, and the function that reads it.

use core::ffi::{c_char, c_void};
use core::mem::offset_of;
use core::ptr;
use std::net::IpAddr;
use std::rc::Rc;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_BLOCK, NGX_CONF_FLAG, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE2,
    NGX_HTTP_LIF_CONF, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF,
    NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF, ngx_command_t, ngx_conf_set_flag_slot,
    ngx_conf_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::http::NgxHttpCoreModule;
use ngx::http::{HttpModuleLocationConf as _, HttpModuleMainConf as _};
use ngx::ngx_string;
use tirreno_pipeline::capture::decision::Verify;
use tirreno_pipeline::capture::exchange::Text as _;
use tirreno_pipeline::capture::path;
use tirreno_pipeline::capture::rule::unknown_type;
use tirreno_pipeline::capture::value::{Purpose, ValueError};
use tirreno_pipeline::config::TargetConfig;
use tirreno_pipeline::config::target::TargetBlock;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::identity::parameters::IdentityBlock;
use tirreno_pipeline::shm::MAX_TARGETS;
use tirreno_pipeline::shm::bindings::MAX_LOOKUPS;
use tirreno_pipeline::shm::zone::Zone;

use crate::conf::ext::{ConfExt, DUPLICATE, conf_error, parse_size};
use crate::conf::rule::{Value, read_token, read_value};
use crate::conf::value::ComplexValue;
use crate::conf::{LocationConf, MainConf, Named, block};
use crate::{TirrenoModule, guarded, status};

/// The longest name of a realm, in bytes.
const MAX_REALM: usize = 255;

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
pub(crate) static mut COMMANDS: [ngx_command_t; 22] = [
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
        ANYWHERE | NGX_CONF_TAKE1 | NGX_CONF_TAKE2,
        cmd_verify,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_realm"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_realm,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_lookup"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_lookup,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_identity"),
        NGX_HTTP_MAIN_CONF | NGX_CONF_BLOCK | NGX_CONF_TAKE1,
        cmd_identity,
        NGX_HTTP_MAIN_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_state"),
        NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1,
        cmd_state,
        NGX_HTTP_MAIN_CONF_OFFSET,
    ),
    command(
        ngx_string!("tirreno_url"),
        ANYWHERE | NGX_CONF_TAKE1,
        cmd_url,
        NGX_HTTP_LOC_CONF_OFFSET,
    ),
    ngx_command_t {
        offset: offset_of!(LocationConf, user_case),
        ..command(
            ngx_string!("tirreno_user_case"),
            ANYWHERE | NGX_CONF_FLAG,
            ngx_conf_set_flag_slot,
            NGX_HTTP_LOC_CONF_OFFSET,
        )
    },
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
    let place = cf.place();
    match block::read::<TargetBlock>(cf, &name) {
        Ok(target) => {
            if target.as_ref().is_some_and(TargetConfig::writes_to_stdout) {
                main.consoles.push((name.clone(), place));
            }
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
    match parse_size(args[1].as_bytes()) {
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
    let Ok(value) = ComplexValue::compile(cf, args[1]) else { return NGX_CONF_ERROR };
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
    let (verified, values) = match &args[1..] {
        [first, rest @ ..] if first.as_bytes() == b"verified" => (true, rest),
        values => (false, values),
    };
    if values.is_empty() {
        return cf.error("\"tirreno_user verified\" names no user, add a value");
    }
    let mut users = Vec::with_capacity(values.len());
    for text in values {
        // In rules, these two words are sources of a user.
        if matches!(text.as_bytes(), b"session" | b"basic") {
            return cf.error(format_args!(
                "\"{text}\" in \"tirreno_user\" directive would be everybody's name, write \"user={text}\" in \
                 a \"tirreno_event\""
            ));
        }
        match read_value(cf, text, Purpose::Name) {
            Ok(value) if value.reads_answer() => return needs_rule(cf, text),
            Ok(value) => users.push(if verified { value.verified() } else { value }),
            Err(error) => return invalid_value(cf, text, error),
        }
    }
    location.users = Some((users.into(), Rc::new(cf.place())));
    NGX_CONF_OK
});

handler!(cmd_session, LocationConf, |cf, location, args| {
    let mut tokens = Vec::with_capacity(args.len() - 1);
    for text in &args[1..] {
        match read_token(cf, text) {
            Ok(token) if token.iter().any(|v| v.reads_answer()) => {
                return needs_rule(cf, text);
            }
            Ok(token) if token.iter().all(|value| value.constant().is_some()) => {
                return cf.error(format_args!(
                    "\"{text}\" in \"tirreno_session\" directive is one session for all requests, it must \
                     be like \"cookie:NAME\" or \"header:NAME\""
                ));
            }
            Ok(token) => tokens.push(token),
            Err(error) => return invalid_value(cf, text, error),
        }
    }
    let place = Rc::new(cf.place());
    if let Some((_, earlier)) = location.sessions.replace((tokens.into(), place.clone())) {
        location.earlier_session = Some(earlier).filter(|earlier| earlier.file != place.file);
    }
    NGX_CONF_OK
});

/// Says what is wrong with a value.
fn invalid_value(cf: &mut ngx_conf_t, text: &ngx_str_t, error: ValueError) -> *mut c_char {
    match error {
        // nginx has logged the reason.
        ValueError::Text => return NGX_CONF_ERROR,
        ValueError::NoFormat => return needs_rule(cf, text),
        _ => {}
    }
    cf.error(format_args!("invalid value \"{text}\" in \"{}\" directive, {error}", cf.args()[0]))
}

/// A body is read only for the rules that ask for it.
fn needs_rule(cf: &mut ngx_conf_t, text: &ngx_str_t) -> *mut c_char {
    cf.error(format_args!(
        "\"{text}\" needs a body, which only rules read: move it from the \"{}\" directive into a \
         \"tirreno_event\"",
        cf.args()[0]
    ))
}

handler!(cmd_ip, LocationConf, |cf, location, args| {
    if location.ip.is_some() {
        return DUPLICATE;
    }
    warn_if_forgeable(cf, args[1]);
    let Ok(value) = ComplexValue::compile(cf, args[1]) else { return NGX_CONF_ERROR };
    let is_address = |text: &[u8]| str::from_utf8(text).is_ok_and(|t| t.parse::<IpAddr>().is_ok());
    if value.constant().is_some_and(|text| !is_address(text)) {
        return cf.error(format_args!(
            "invalid value \"{}\" in \"tirreno_ip\" directive, it must be an address, or a variable like \
             \"$remote_addr\"",
            args[1]
        ));
    }
    location.ip = Some(value);
    NGX_CONF_OK
});

/// Warns if the address comes from a request header: clients can write it.
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
    let purpose = if param == Param::UserName { Purpose::Name } else { Purpose::Send };
    let value: Value = match read_value(cf, &args[2], purpose) {
        Ok(value) if value.reads_answer() => return needs_rule(cf, &args[2]),
        Ok(value) => value,
        Err(error) => return invalid_value(cf, &args[2], error),
    };
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
        Some(params) => params.push((param, value)),
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
    let Some(main) = TirrenoModule::main_conf_mut(cf) else { return NGX_CONF_ERROR };
    match main.known.entry(cf, &args[1..]) {
        Ok(entry) => {
            let is_known = location.own_rules.iter().any(|known| Rc::ptr_eq(known, &entry));
            if is_known && !std::mem::replace(&mut location.includes_twice, true) {
                cf.warn("this file is included twice on one level, remove one \"include\" of it");
            }
            // Two directives with the same text are one rule.
            if !is_known {
                location.own_rules.push(entry);
            }
            NGX_CONF_OK
        }
        Err(error) => cf.error(format_args!("{error} in \"tirreno_event\" directive")),
    }
});

handler!(cmd_default_event, LocationConf, |cf, location, args| {
    let event = EventType::from_name(args[1].as_bytes());
    if event.is_none() && args[1].as_bytes() != b"off" {
        let error = unknown_type(args[1].as_bytes());
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
    // A normalized path never begins with another one. A prefix has no segments with names.
    let has_brace = path.iter().any(|b| matches!(b, b'{' | b'}'));
    if has_brace || !path.starts_with(b"/") || path::normalize(path, &mut Vec::new()) != path {
        return cf.error(format_args!(
            "invalid value \"{prefix}\" in \"tirreno_event_prefix\" directive, it must be a path like \
             \"/chat\", decoded and without \"//\", \"?\", braces or segments \".\" and \"..\""
        ));
    }
    while prefix.as_bytes().ends_with(b"/") {
        prefix.len -= 1;
    }
    location.event_prefix = Some(prefix);
    NGX_CONF_OK
});

handler!(cmd_verify, LocationConf, |cf, location, args| {
    let verify = match args[1].as_bytes() {
        b"off" => Verify::Off,
        b"answer" => Verify::Answer,
        b"session" => Verify::Session,
        _ => {
            return cf.error(format_args!(
                "invalid value \"{}\" in \"tirreno_verify\" directive, it must be \"off\", \
                 \"answer\" or \"session\"",
                args[1]
            ));
        }
    };
    let dry_run = match args.get(2) {
        None => false,
        Some(word) if word.as_bytes() == b"dry_run" && verify != Verify::Off => true,
        Some(word) => {
            return cf.error(format_args!(
                "invalid parameter \"{word}\" in \"tirreno_verify\" directive, it may be \
                 \"dry_run\" behind \"answer\" or \"session\""
            ));
        }
    };
    location.verify = Some((verify, dry_run, Rc::new(cf.place())));
    NGX_CONF_OK
});

handler!(cmd_realm, LocationConf, |cf, location, args| {
    if location.realm.is_some() {
        return DUPLICATE;
    }
    let name = args[1].as_bytes();
    if name.is_empty() || name.len() > MAX_REALM || !name.iter().all(u8::is_ascii_graphic) {
        return cf.error(format_args!(
            "invalid value \"{}\" in \"tirreno_realm\" directive, it must be 1 to {MAX_REALM} \
             letters, digits and signs, without spaces and variables",
            args[1]
        ));
    }
    if name.contains(&b'$') {
        return cf.error("\"tirreno_realm\" cannot contain variables, write a name");
    }
    location.realm = Some(args[1]);
    NGX_CONF_OK
});

handler!(cmd_lookup, LocationConf, |cf, location, args| {
    if location.lookup.is_some() {
        return DUPLICATE;
    }
    location.lookup = Some(Rc::new(Named { name: args[1].to_string(), place: cf.place() }));
    NGX_CONF_OK
});

handler!(cmd_identity, MainConf, |cf, main, args| {
    let name = args[1].to_string();
    if main.lookups.iter().any(|known| known.name == name) {
        return cf.error(format_args!(
            "duplicate \"tirreno_identity {name}\", write it with another name"
        ));
    }
    if main.lookups.len() == MAX_LOOKUPS {
        return cf.error(format_args!("too many \"tirreno_identity\", there may be {MAX_LOOKUPS}"));
    }
    match block::read::<IdentityBlock>(cf, &name) {
        Ok(config) => {
            main.lookups.push(config);
            NGX_CONF_OK
        }
        Err(error) => error,
    }
});

handler!(cmd_state, MainConf, |cf, main, args| {
    if main.state.is_some() {
        return DUPLICATE;
    }
    if args[1].is_empty() {
        return cf.error("\"tirreno_state\" names no file");
    }
    let Some(path) = cf.prefix_name(args[1].as_bytes()) else { return NGX_CONF_ERROR };
    main.state = Some((path, cf.place()));
    NGX_CONF_OK
});

handler!(cmd_url, LocationConf, |cf, location, args| {
    location.url_page = Some(match args[1].as_bytes() {
        b"request" => false,
        b"page" => true,
        _ => {
            return cf.error(format_args!(
                "invalid value \"{}\" in \"tirreno_url\" directive, it must be \"request\" or \
                 \"page\"",
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
    } else if let Some(name) = names.iter().find(|name| !is_name_of_argument(name.as_bytes())) {
        return cf.error(format_args!(
            "invalid name \"{name}\" in \"tirreno_redact\" directive, it must be that of an argument, with \
             letters or digits and without \"*\""
        ));
    } else {
        location.own_secrets.extend(names.iter().map(ToString::to_string));
    }
    NGX_CONF_OK
});

/// Names are compared by their letters and digits; there are no patterns.
fn is_name_of_argument(name: &[u8]) -> bool {
    name.iter().any(|b| b.is_ascii_alphanumeric() || !b.is_ascii()) && !name.contains(&b'*')
}

handler!(cmd_status, LocationConf, |cf, location, _args| {
    location.status = Some(cf.place());
    let Some(core) = NgxHttpCoreModule::location_conf_mut(cf) else { return NGX_CONF_ERROR };
    if core.handler.is_some() {
        return conf_error(
            c"is duplicate, or the location has another handler such as \"proxy_pass\"",
        );
    }
    core.handler = Some(status::handler);
    NGX_CONF_OK
});
