//! The realm of a server without `tirreno_realm`: accounts and sessions are learned separately for each realm.

use nginx_sys::{
    ngx_array_t, ngx_conf_t, ngx_http_conf_addr_t, ngx_http_conf_port_t, ngx_http_core_srv_conf_t,
};
use ngx::http::{HttpModuleMainConf as _, NgxHttpCoreModule};

use super::value::bytes;

/// The address of a server's configuration, and the server's realm.
pub(crate) type ServerRealm = (*const ngx_http_core_srv_conf_t, Box<[u8]>);

/// The realm of each server: its first name if it is a plain one, else its first `listen`.
pub(crate) fn of_servers(cf: &ngx_conf_t) -> Vec<ServerRealm> {
    let Some(core) = NgxHttpCoreModule::main_conf(cf) else { return Vec::new() };
    // SAFETY: the arrays hold what nginx says they do while it reads the configuration.
    unsafe {
        let servers = elements::<*mut ngx_http_core_srv_conf_t>(&core.servers);
        let realm = |server: &*mut ngx_http_core_srv_conf_t| {
            let name = (**server).server_name;
            let name = bytes(name.data, name.len);
            let realm = if is_plain(name) { name } else { first_listen(core.ports, *server) };
            (server.cast_const(), realm.into())
        };
        servers.iter().map(realm).collect()
    }
}

/// Whether it is a host name, and not a pattern or a catch-all.
fn is_plain(name: &[u8]) -> bool {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    name.iter().all(is_part) && name.iter().any(u8::is_ascii_alphanumeric)
}

/// # Safety
/// `ports` is null or nginx's array, `server` one of its servers.
unsafe fn first_listen<'c>(
    ports: *const ngx_array_t,
    server: *const ngx_http_core_srv_conf_t,
) -> &'c [u8] {
    // SAFETY: the caller's promise.
    unsafe { listens(ports, server).next().map(text).unwrap_or_default() }
}

/// An address as nginx writes it: `127.0.0.1:80`, `*:80`, `[::]:80`, `unix:/path`.
pub(crate) fn text(address: &ngx_http_conf_addr_t) -> &[u8] {
    let text = &address.opt.addr_text;
    // SAFETY: nginx's text, which lives as long as its configuration.
    unsafe { bytes(text.data, text.len) }
}

/// The addresses that a server listens on.
///
/// # Safety
/// `ports` is null or nginx's array, `server` one of its servers.
pub(crate) unsafe fn listens<'c>(
    ports: *const ngx_array_t,
    server: *const ngx_http_core_srv_conf_t,
) -> impl Iterator<Item = &'c ngx_http_conf_addr_t> {
    // SAFETY: the caller's promise.
    unsafe {
        let ports = ports.as_ref().map_or(&[][..], |ports| elements::<ngx_http_conf_port_t>(ports));
        let addresses = ports.iter().flat_map(|port| elements::<ngx_http_conf_addr_t>(&port.addrs));
        addresses.filter(move |address| {
            let servers = elements::<*mut ngx_http_core_srv_conf_t>(&address.servers);
            servers.iter().any(|known| known.cast_const() == server)
        })
    }
}

/// # Safety
/// The array holds elements of that type, and lives for `'c`.
unsafe fn elements<'c, T>(array: &ngx_array_t) -> &'c [T] {
    if array.nelts == 0 || array.elts.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(array.elts.cast::<T>(), array.nelts) }
}
