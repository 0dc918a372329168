//! Whether everybody can reach a location.

use core::ffi::{CStr, c_void};
use core::{ptr, slice};

use nginx_sys::{
    NGX_CONF_UNSET, ngx_conf_t, ngx_http_complex_value_t, ngx_http_conf_addr_t,
    ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t, ngx_http_core_srv_conf_t,
    ngx_http_location_queue_t, ngx_module_t,
};
use ngx::http::{
    HttpModuleLocationConf as _, HttpModuleMainConf as _, HttpModuleServerConf as _,
    NgxHttpCoreModule,
};

use super::realm::{listens, text};
use super::value::bytes;

/// What `ssl_verify_client on` sets; `optional` lets everybody in.
const VERIFY_ON: usize = 1;

/// Whether other machines can ask for the location that is being merged, and nobody asks them who they
/// are. nginx's own modules have merged their configurations by then: they come before this one.
///
/// An `if` in the location counts as such a question: what it asks cannot be told from here.
pub(crate) fn is_open(cf: &ngx_conf_t) -> bool {
    let Some(location) = NgxHttpCoreModule::location_conf(cf) else { return false };
    location.internal != 1 && !has_if(location) && is_reachable(cf) && !is_guarded(cf)
}

/// Whether the location has an `if`, which nginx keeps as a location without a name until all are merged.
fn has_if(location: &ngx_http_core_loc_conf_t) -> bool {
    let head = location.locations;
    if head.is_null() {
        return false;
    }
    // SAFETY: nginx's ring of queue elements, each at the beginning of an `ngx_http_location_queue_t` but for
    // its head.
    unsafe {
        let mut next = (*head).next;
        while !ptr::eq(next, head) {
            let inner = &*next.cast::<ngx_http_location_queue_t>();
            if inner.exact.as_ref().is_some_and(|exact| exact.noname() == 1) {
                return true;
            }
            next = (*next).next;
        }
    }
    false
}

/// Whether the server listens on an address that is not this machine's alone, and takes anybody there.
fn is_reachable(cf: &ngx_conf_t) -> bool {
    let (Some(core), Some(server)) =
        (NgxHttpCoreModule::main_conf(cf), NgxHttpCoreModule::server_conf(cf))
    else {
        return true;
    };
    let server: *const ngx_http_core_srv_conf_t = server;
    let wants_certificates = wants_certificates(cf);
    let is_closed = |address: &ngx_http_conf_addr_t| {
        let text = text(address);
        [&b"127."[..], b"[::1]", b"unix:"].iter().any(|start| text.starts_with(start))
            || wants_certificates && address.opt.ssl() == 1
    };
    // SAFETY: nginx's arrays, while it reads the configuration.
    unsafe { !listens(core.ports, server).all(is_closed) }
}

/// Whether TLS connections need a certificate of the client's.
fn wants_certificates(cf: &ngx_conf_t) -> bool {
    let Some(module) = module(cf, c"ngx_http_ssl_module") else { return false };
    // SAFETY: the commands end with one without a name. The configuration has, where the command says it has
    // it, the number that `ngx_conf_set_enum_slot` has set.
    unsafe {
        let context = cf.ctx.cast::<ngx_http_conf_ctx_t>();
        let conf = *(*context).srv_conf.add(module.ctx_index);
        let mut command = module.commands;
        while !conf.is_null() && (*command).name.len != 0 {
            if bytes((*command).name.data, (*command).name.len) == b"ssl_verify_client" {
                return *conf.byte_add((*command).offset).cast::<usize>() == VERIFY_ON;
            }
            command = command.add(1);
        }
        false
    }
}

/// Whether one of nginx's modules asks in this location who comes.
fn is_guarded(cf: &ngx_conf_t) -> bool {
    let is_set = |words: &[usize]| words.iter().any(|&word| is_set(word));
    // SAFETY: the configurations begin with so many words in all versions of nginx since 1.22. One that is set is
    // the pointer that nginx's type says it is.
    unsafe {
        // The rules for IPv4, IPv6 and Unix sockets.
        words(cf, c"ngx_http_access_module", 3).is_some_and(is_set)
            // The length of the URI.
            || words(cf, c"ngx_http_auth_request_module", 1).is_some_and(is_set)
            || words(cf, c"ngx_http_auth_basic_module", 1).is_some_and(|words| {
                let realm = ptr::with_exposed_provenance::<ngx_http_complex_value_t>(words[0]);
                is_set(words) && bytes((*realm).value.data, (*realm).value.len) != b"off"
            })
    }
}

/// One that was not set anywhere may not have been merged.
fn is_set(word: usize) -> bool {
    word != 0 && word != NGX_CONF_UNSET as usize
}

/// The first words of a module's configuration of the location.
///
/// # Safety
/// The configuration has so many.
unsafe fn words<'c>(cf: &'c ngx_conf_t, name: &CStr, count: usize) -> Option<&'c [usize]> {
    let module = module(cf, name)?;
    // SAFETY: while locations are merged, the context is that of the location. The rest is the caller's promise.
    unsafe {
        let context = cf.ctx.cast::<ngx_http_conf_ctx_t>();
        let conf: *mut c_void = *(*context).loc_conf.add(module.ctx_index);
        (!conf.is_null()).then(|| slice::from_raw_parts(conf.cast::<usize>(), count))
    }
}

/// The module of that name.
fn module<'c>(cf: &'c ngx_conf_t, name: &CStr) -> Option<&'c ngx_module_t> {
    // SAFETY: nginx's list of modules, which ends with null.
    unsafe {
        let mut next = cf.cycle.as_ref()?.modules;
        while let Some(module) = next.as_ref()?.as_ref() {
            if !module.name.is_null() && CStr::from_ptr(module.name) == name {
                return Some(module);
            }
            next = next.add(1);
        }
    }
    None
}
