//! Whether a location lets everybody in.

use core::ffi::{CStr, c_void};
use core::slice;

use nginx_sys::{NGX_CONF_UNSET, ngx_conf_t, ngx_http_conf_ctx_t, ngx_http_core_srv_conf_t};
use ngx::http::{
    HttpModuleLocationConf as _, HttpModuleMainConf as _, HttpModuleServerConf as _,
    NgxHttpCoreModule,
};

use super::realm::listens;

/// nginx's modules that ask who comes, and how many words at the beginning of a location's configuration
/// are not zero where they do.
const MODULES: [(&CStr, usize); 3] = [
    // The rules for IPv4, IPv6 and Unix sockets.
    (c"ngx_http_access_module", 3),
    // The realm.
    (c"ngx_http_auth_basic_module", 1),
    // The length of the URI.
    (c"ngx_http_auth_request_module", 1),
];

/// Whether other machines can ask for the location that is being merged, and nobody asks them who they
/// are. All modules in [`MODULES`] have merged theirs by then: they come before this one.
pub(crate) fn is_open(cf: &ngx_conf_t) -> bool {
    let is_internal = NgxHttpCoreModule::location_conf(cf).is_some_and(|core| core.internal == 1);
    !is_internal && is_reachable(cf) && !is_guarded(cf)
}

/// Whether the server listens on an address that is not this machine's alone.
fn is_reachable(cf: &ngx_conf_t) -> bool {
    let (Some(core), Some(server)) =
        (NgxHttpCoreModule::main_conf(cf), NgxHttpCoreModule::server_conf(cf))
    else {
        return true;
    };
    let server: *const ngx_http_core_srv_conf_t = server;
    let is_local = |address: &[u8]| {
        [&b"127."[..], b"[::1]", b"unix:"].iter().any(|start| address.starts_with(start))
    };
    // SAFETY: nginx's arrays, while it reads the configuration.
    unsafe { !listens(core.ports, server).all(is_local) }
}

fn is_guarded(cf: &ngx_conf_t) -> bool {
    // SAFETY: while locations are merged, the context is that of the location. The list of modules ends with
    // null. A configuration is null or has at least as many words as `MODULES` says, in all versions of nginx
    // since 1.22.
    unsafe {
        let context = cf.ctx.cast::<ngx_http_conf_ctx_t>();
        let Some(cycle) = cf.cycle.as_ref() else { return false };
        let mut next = cycle.modules;
        while let Some(module) = next.as_ref().and_then(|module| module.as_ref()) {
            next = next.add(1);
            if module.name.is_null() {
                continue;
            }
            let name = CStr::from_ptr(module.name);
            let Some((_, words)) = MODULES.iter().find(|(known, _)| *known == name) else {
                continue;
            };
            let conf: *mut c_void = *(*context).loc_conf.add(module.ctx_index);
            if conf.is_null() {
                continue;
            }
            let words = slice::from_raw_parts(conf.cast::<usize>(), *words);
            // One that was not set anywhere may not have been merged.
            if words.iter().any(|word| *word != 0 && *word != NGX_CONF_UNSET as usize) {
                return true;
            }
        }
        false
    }
}
