//! `$tirreno_event`, `$tirreno_user`, `$tirreno_identity`, `$tirreno_claimed`, `$tirreno_captured`: what became of a request, for `log_format`.
//!
//! The first variable that is evaluated in the log phase captures the request. Before that phase they are
//! empty, and are evaluated again the next time.

use core::ffi::CStr;

use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, ngx_conf_t, ngx_http_add_variable, ngx_http_request_t,
    ngx_http_variable_value_t, ngx_int_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::Status;
use ngx::ngx_string;

use crate::capture::{Captured, capture};
use crate::conf::value::set_variable;
use crate::guarded;

/// nginx's word for the log phase, in the action of the connection's log.
const LOG_PHASE: &CStr = c"logging request";

type Show = fn(&Captured) -> (*const u8, usize);

/// The variables and what they show.
const VARIABLES: [(ngx_str_t, Show); 5] = [
    (ngx_string!("tirreno_event"), |captured| {
        let name = captured.event.map_or("", |event| event.name());
        (name.as_ptr(), name.len())
    }),
    (ngx_string!("tirreno_user"), |captured| (captured.user.data, captured.user.len)),
    (ngx_string!("tirreno_identity"), |captured| {
        let name = captured.event.map_or("", |_| captured.identity.name());
        (name.as_ptr(), name.len())
    }),
    (ngx_string!("tirreno_claimed"), |captured| (captured.claimed.data, captured.claimed.len)),
    (ngx_string!("tirreno_captured"), |captured| {
        (captured.outcome.as_ptr(), captured.outcome.len())
    }),
];

/// Adds the variables.
pub(crate) fn add(cf: &mut ngx_conf_t) -> Result<(), Status> {
    for (place, (name, _)) in VARIABLES.into_iter().enumerate() {
        let mut name = name;
        // SAFETY: the context is valid, and the name static.
        let variable = unsafe {
            ngx_http_add_variable(cf, &mut name, NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t).as_mut()
        };
        let variable = variable.ok_or(Status::NGX_ERROR)?;
        variable.get_handler = Some(get);
        variable.data = place;
    }
    Ok(())
}

unsafe extern "C" fn get(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    place: usize,
) -> ngx_int_t {
    guarded((), || {
        // SAFETY: nginx passes a request and one of its variables; this is its event loop.
        unsafe {
            let value = &mut *value;
            value.set_not_found(1);
            let action = (*(*(*r).connection).log).action;
            if action.is_null() || CStr::from_ptr(action) != LOG_PHASE {
                return;
            }
            let Some(captured) = capture((*r).main) else { return };
            let (text, len) = VARIABLES[place].1(&captured);
            set_variable(value, text.cast_mut(), len);
        }
    });
    Status::NGX_OK.into()
}
