//! A request that no client made, for nginx's own functions and variables.
//!
//! It has no connection and no event loop; its address, TLS data and sockets are zeros. The process ends soon
//! after, so nothing is freed.

use core::ffi::c_void;
use core::{mem, ptr};

use nginx_sys::{
    NGX_HTTP_MODULE, NGX_OK, in_addr, in_port_t, ngx_cached_time, ngx_connection_t, ngx_cycle_t,
    ngx_event_t, ngx_hash_find, ngx_hash_key_lc, ngx_http_connection_t, ngx_http_core_loc_conf_t,
    ngx_http_core_main_conf_t, ngx_http_core_srv_conf_t, ngx_http_header_t,
    ngx_http_location_tree_node_t, ngx_http_max_module, ngx_http_regex_exec, ngx_http_request_t,
    ngx_http_upstream_conf_t, ngx_http_upstream_t, ngx_http_variable_value_t, ngx_int_t,
    ngx_list_init, ngx_list_push, ngx_list_t, ngx_pcalloc, ngx_pnalloc, ngx_pool_t, ngx_str_t,
    ngx_table_elt_t, sockaddr, sockaddr_in,
};
use ngx::http::{HttpModuleLocationConf as _, NgxHttpCoreModule};
use tirreno_pipeline::capture::path;

use super::asked::Asked;

/// There is no more memory.
#[derive(Debug)]
pub(super) struct NoMemory;

/// A request in the making.
pub(super) struct Made {
    pub(super) r: *mut ngx_http_request_t,
    pool: *mut ngx_pool_t,
}

impl Made {
    /// The request and its answer, in the server's outermost location.
    ///
    /// # Safety
    /// The configuration has been read as a whole, and nothing has been allocated from it since.
    pub(super) unsafe fn new(
        cycle: &ngx_cycle_t,
        core: &ngx_http_core_main_conf_t,
        server: &ngx_http_core_srv_conf_t,
        port: in_port_t,
        asked: &Asked,
    ) -> Result<Self, NoMemory> {
        let pool = cycle.pool;
        // SAFETY: zeros are what nginx starts from, too; all pointers are to the cycle's pool.
        unsafe {
            let connection = zeroed::<ngx_connection_t>(pool)?;
            connection.pool = pool;
            connection.log = cycle.log;
            connection.fd = -1;
            connection.read = zeroed::<ngx_event_t>(pool)?;
            connection.write = zeroed::<ngx_event_t>(pool)?;
            (*connection.read).log = cycle.log;
            (*connection.write).log = cycle.log;
            let address = |port: u16| {
                let address = zeroed::<sockaddr_in>(pool)?;
                address.sin_family = libc::AF_INET as _;
                address.sin_port = port.to_be();
                address.sin_addr = in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) };
                Ok(ptr::from_mut(address).cast::<sockaddr>())
            };
            connection.sockaddr = address(0)?;
            connection.socklen = size_of::<sockaddr_in>() as _;
            connection.local_sockaddr = address(port)?;
            connection.local_socklen = size_of::<sockaddr_in>() as _;
            connection.addr_text = text(pool, b"127.0.0.1")?;

            let context = &*server.ctx;
            let http = zeroed::<ngx_http_connection_t>(pool)?;
            http.conf_ctx = server.ctx;
            let request = zeroed::<ngx_http_request_t>(pool)?;
            request.signature = NGX_HTTP_MODULE;
            request.connection = connection;
            request.http_connection = http;
            request.pool = pool;
            request.main = request;
            request.set_count(1);
            request.main_conf = context.main_conf;
            request.srv_conf = context.srv_conf;
            request.loc_conf = context.loc_conf;
            request.ctx = array::<*mut c_void>(pool, ngx_http_max_module)?;
            request.variables = array::<ngx_http_variable_value_t>(pool, core.variables.nelts)?;
            request.start_sec = (*ngx_cached_time).sec;
            request.start_msec = (*ngx_cached_time).msec;
            request.set_uri_changes(11);
            request.http_version = 1001;
            request.http_protocol = text(pool, b"HTTP/1.1")?;
            request.headers_in.content_length_n = -1;
            request.headers_in.keep_alive_n = -1;
            request.headers_out.content_length_n = -1;
            request.headers_out.last_modified_time = -1;

            let (target, _) = asked.split_target();
            let line = format!("{} {target} HTTP/1.1", asked.method);
            request.request_line = text(pool, line.as_bytes())?;
            request.method_name = text(pool, asked.method.as_bytes())?;
            request.method = method(&asked.method);
            request.unparsed_uri = text(pool, target.as_bytes())?;
            request.uri = text(pool, path::normalize(target.as_bytes(), &mut Vec::new()))?;
            if let Some((_, query)) = target.split_once('?') {
                request.args = text(pool, query.as_bytes())?;
            }
            let made = Self { r: request, pool };
            made.set_headers(core, asked)?;
            made.set_answer(asked)?;
            Ok(made)
        }
    }

    /// # Safety
    /// As for [`new`](Self::new).
    unsafe fn set_headers(
        &self,
        core: &ngx_http_core_main_conf_t,
        asked: &Asked,
    ) -> Result<(), NoMemory> {
        // SAFETY: the request is whole but for its headers; nginx's handlers of headers want no more.
        unsafe {
            let request = &mut *self.r;
            init(&mut request.headers_in.headers, self.pool)?;
            let (host, _) = asked.host();
            request.headers_in.server = text(self.pool, host.as_bytes())?;
            for (name, value) in &asked.headers {
                let header = self.push(&mut request.headers_in.headers, name, value)?;
                let hash = ptr::from_ref(&core.headers_in_hash).cast_mut();
                let (key, len) = ((*header).lowcase_key, (*header).key.len);
                let known =
                    ngx_hash_find(hash, (*header).hash, key, len).cast::<ngx_http_header_t>();
                // nginx's handler of `Host` would look for the server through the connection.
                if name.eq_ignore_ascii_case("host") {
                    request.headers_in.host = header;
                } else if let Some(known) = known.as_ref()
                    && let Some(handler) = known.handler
                {
                    handler(self.r, header, known.offset);
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`new`](Self::new).
    unsafe fn set_answer(&self, asked: &Asked) -> Result<(), NoMemory> {
        // SAFETY: as above.
        unsafe {
            let request = &mut *self.r;
            request.headers_out.status = asked.status.into();
            crate::layout::set_header_sent(request);
            init(&mut request.headers_out.headers, self.pool)?;
            let hung_up = matches!(asked.status, 0 | 499);
            if !asked.is_by_nginx && !hung_up {
                let upstream = zeroed::<ngx_http_upstream_t>(self.pool)?;
                upstream.conf = zeroed::<ngx_http_upstream_conf_t>(self.pool)?;
                upstream.headers_in.status_n = asked.status.into();
                upstream.headers_in.content_length_n = -1;
                init(&mut upstream.headers_in.headers, self.pool)?;
                request.upstream = upstream;
            }
            for (name, value) in &asked.answer_headers {
                let header = self.push(&mut request.headers_out.headers, name, value)?;
                if name.eq_ignore_ascii_case("location") {
                    request.headers_out.location = header;
                }
                if name.eq_ignore_ascii_case("content-type") {
                    request.headers_out.content_type = (*header).value;
                }
                if let Some(upstream) = request.upstream.as_mut() {
                    self.push(&mut upstream.headers_in.headers, name, value)?;
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// The list is initialized.
    unsafe fn push(
        &self,
        list: &mut ngx_list_t,
        name: &str,
        value: &str,
    ) -> Result<*mut ngx_table_elt_t, NoMemory> {
        // SAFETY: the caller's promise; the list gives a place for a header, which is not initialized.
        unsafe {
            let header = ngx_list_push(list).cast::<ngx_table_elt_t>();
            if header.is_null() {
                return Err(NoMemory);
            }
            header.write(mem::zeroed());
            let header = &mut *header;
            header.key = text(self.pool, name.as_bytes())?;
            header.value = text(self.pool, value.as_bytes())?;
            let lower = text(self.pool, name.to_ascii_lowercase().as_bytes())?;
            header.lowcase_key = lower.data;
            header.hash = ngx_hash_key_lc(lower.data, lower.len);
            Ok(header)
        }
    }

    /// Assigns the location for the request's path, as nginx does before its phases. Returns false if nginx
    /// would redirect to the same path with a slash.
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub(super) unsafe fn find_location(&self) -> bool {
        // SAFETY: the configuration's trees and arrays are as nginx made them.
        unsafe {
            let found = self.find();
            let request = &mut *self.r;
            if let Some(core) = NgxHttpCoreModule::location_conf(request)
                && request.method & core.limit_except as usize != 0
            {
                request.loc_conf = core.limit_except_loc_conf;
            }
            found != Some(Search::Redirect)
        }
    }

    /// `ngx_http_core_find_location`.
    ///
    /// # Safety
    /// As for [`find_location`](Self::find_location).
    unsafe fn find(&self) -> Option<Search> {
        // SAFETY: the caller's promise.
        unsafe {
            let parent = NgxHttpCoreModule::location_conf(&*self.r)?;
            let mut has_regex = true;
            let mut found = self.find_static(parent.static_locations);
            if found == Some(Search::Prefix) {
                has_regex = NgxHttpCoreModule::location_conf(&*self.r)?.noregex() == 0;
                // A location in it.
                found = self.find();
            }
            if matches!(found, Some(Search::Exact | Search::Redirect)) {
                return found;
            }
            let mut next = parent.regex_locations;
            while has_regex && !next.is_null() && !(*next).is_null() {
                let location = &**next;
                next = next.add(1);
                let uri = &raw mut (*self.r).uri;
                if ngx_http_regex_exec(self.r, location.regex, uri) == NGX_OK as ngx_int_t {
                    (*self.r).loc_conf = location.loc_conf;
                    self.find();
                    return Some(Search::Exact);
                }
            }
            found
        }
    }

    /// `ngx_http_core_find_static_location`.
    ///
    /// # Safety
    /// As for [`find_location`](Self::find_location).
    unsafe fn find_static(&self, tree: *const ngx_http_location_tree_node_t) -> Option<Search> {
        let (mut node, mut found) = (tree, None);
        // SAFETY: the caller's promise; a node's name goes on behind its first byte.
        unsafe {
            let uri = (*self.r).uri;
            let mut uri = core::slice::from_raw_parts(uri.data, uri.len);
            let enter = |location: *const ngx_http_core_loc_conf_t| {
                (*self.r).loc_conf = (*location).loc_conf;
            };
            while let Some(here) = node.as_ref() {
                let name = core::slice::from_raw_parts(here.name.as_ptr(), here.len.into());
                let common = name.len().min(uri.len());
                match uri[..common].cmp(&name[..common]) {
                    core::cmp::Ordering::Less => node = here.left,
                    core::cmp::Ordering::Greater => node = here.right,
                    _ if uri.len() > name.len() && !here.inclusive.is_null() => {
                        enter(here.inclusive);
                        found = Some(Search::Prefix);
                        node = here.tree;
                        uri = &uri[common..];
                    }
                    // An exact location only.
                    _ if uri.len() > name.len() => node = here.right,
                    _ if uri.len() == name.len() => {
                        let is_exact = !here.exact.is_null();
                        enter(if is_exact { here.exact } else { here.inclusive });
                        return Some(if is_exact { Search::Exact } else { Search::Prefix });
                    }
                    _ => {
                        if uri.len() + 1 == name.len() && here.auto_redirect != 0 {
                            enter(if here.exact.is_null() { here.inclusive } else { here.exact });
                            found = Some(Search::Redirect);
                        }
                        node = here.left;
                    }
                }
            }
        }
        found
    }
}

/// What a search for a location has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// A match that needs no further search.
    Exact,
    /// A prefix of the path matches.
    Prefix,
    /// The path matches but for its last slash.
    Redirect,
}

/// The bit of a method, for `limit_except`.
fn method(name: &str) -> usize {
    let names = [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "DELETE",
        "MKCOL",
        "COPY",
        "MOVE",
        "OPTIONS",
        "PROPFIND",
        "PROPPATCH",
        "LOCK",
        "UNLOCK",
        "PATCH",
        "TRACE",
        "CONNECT",
    ];
    // `NGX_HTTP_UNKNOWN` is the first bit.
    names.iter().position(|known| *known == name).map_or(1, |place| 1 << (place + 1))
}

/// # Safety
/// Zeros are a value of `T`.
unsafe fn zeroed<'p, T>(pool: *mut ngx_pool_t) -> Result<&'p mut T, NoMemory> {
    // SAFETY: the caller's promise; the pool aligns what it gives.
    unsafe { ngx_pcalloc(pool, size_of::<T>()).cast::<T>().as_mut().ok_or(NoMemory) }
}

/// # Safety
/// Zeros are a value of `T`.
unsafe fn array<T>(pool: *mut ngx_pool_t, len: usize) -> Result<*mut T, NoMemory> {
    // SAFETY: as above.
    let array = unsafe { ngx_pcalloc(pool, size_of::<T>() * len.max(1)).cast::<T>() };
    if array.is_null() { Err(NoMemory) } else { Ok(array) }
}

/// # Safety
/// `list` is not in use.
unsafe fn init(list: &mut ngx_list_t, pool: *mut ngx_pool_t) -> Result<(), NoMemory> {
    // SAFETY: the caller's promise.
    let rc = unsafe { ngx_list_init(list, pool, 8, size_of::<ngx_table_elt_t>()) };
    if rc == NGX_OK as ngx_int_t { Ok(()) } else { Err(NoMemory) }
}

/// A copy that lives as long as the pool, with a NUL behind it.
///
/// # Safety
/// The pool is valid.
unsafe fn text(pool: *mut ngx_pool_t, text: &[u8]) -> Result<ngx_str_t, NoMemory> {
    // SAFETY: the pool gives one byte more than the text has.
    unsafe {
        let data = ngx_pnalloc(pool, text.len() + 1).cast::<u8>();
        if data.is_null() {
            return Err(NoMemory);
        }
        ptr::copy_nonoverlapping(text.as_ptr(), data, text.len());
        data.add(text.len()).write(0);
        Ok(ngx_str_t { len: text.len(), data })
    }
}
