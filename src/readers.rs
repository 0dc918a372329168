//! What has been read of a request's body and of its answer, for the rules that ask for it.

use core::ffi::c_void;
use core::ptr;

use nginx_sys::{ngx_http_request_t, ngx_pool_cleanup_add};
use tirreno_pipeline::capture::extract::{
    AnswerReader, BUDGET, BodyFormat, BodyReader, Found, Room,
};

use crate::guarded;
use crate::request::Request;

/// The readers of one exchange. They live in the request's pool, because an internal redirect (as to an error
/// page) clears the module's context.
pub(crate) struct Readers {
    pub(crate) room: Room,
    /// `None` until the first part of the request's body comes. If an internal redirect changes the location
    /// later, the rules of the first location have chosen what is read: the earlier parts are gone by then.
    pub(crate) bodies: Option<Vec<BodyReader>>,
    pub(crate) answer: Option<AnswerReader>,
}

impl Readers {
    /// The request's readers, to give them more bytes.
    ///
    /// # Safety
    /// While the reference is used, nothing else refers to them.
    pub(crate) unsafe fn of_mut<'r>(request: Request<'r>) -> Option<&'r mut Self> {
        // SAFETY: the caller's promise; they live while the request does.
        unsafe { find(request).as_mut() }
    }

    /// New readers for a request that has none; `None` without memory.
    pub(crate) fn attach<'r>(request: Request<'r>) -> Option<&'r mut Self> {
        // SAFETY: the pool lives while the request does, and calls `detach` at its end.
        unsafe {
            let cleanup = ngx_pool_cleanup_add((*request.as_ptr()).pool, 0).as_mut()?;
            let readers = Self { room: Room::new(&BUDGET), bodies: None, answer: None };
            cleanup.data = Box::into_raw(Box::new(readers)).cast();
            cleanup.handler = Some(DETACH);
            cleanup.data.cast::<Self>().as_mut()
        }
    }

    fn of<'r>(request: Request<'r>) -> Option<&'r Self> {
        // SAFETY: the filters, which alone change the readers, run before or after rules ask for what was read.
        unsafe { find(request).as_ref() }
    }
}

/// The value of a field of the request's body, as the application's parser reads it; with `is_name`, a number
/// is no value.
pub(crate) fn body_field<'r>(
    request: Request<'r>,
    format: BodyFormat,
    field: &str,
    is_name: bool,
) -> Found<'r> {
    let Some(bodies) = Readers::of(request).and_then(|readers| readers.bodies.as_deref()) else {
        return if request.announces_body() { Found::Unread } else { Found::Absent };
    };
    let body = bodies.iter().find(|body| body.format() == format);
    body.map_or(Found::Unread, |body| match is_name {
        true => body.values().name(field),
        false => body.values().get(field),
    })
}

/// The value of a field of the JSON answer. An answer that was not read is unreadable.
pub(crate) fn answer_field<'r>(request: Request<'r>, field: &str) -> Found<'r> {
    let answer = Readers::of(request).and_then(|readers| readers.answer.as_ref());
    match answer.map_or(Found::Unread, |answer| answer.get(field)) {
        Found::Unread => Found::Unreadable,
        found => found,
    }
}

/// Whether the answer is readable and its beginning contains these bytes.
pub(crate) fn answer_has(request: Request<'_>, text: &[u8]) -> bool {
    let answer = Readers::of(request).and_then(|readers| readers.answer.as_ref());
    answer.and_then(|answer| answer.has(text)).unwrap_or(false)
}

/// The request's readers; null if nothing of it is read.
fn find(request: Request<'_>) -> *mut Readers {
    let r: *const ngx_http_request_t = request.as_ptr();
    // SAFETY: the request's pool and its cleanups live while it does.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry.handler.is_some_and(|handler| ptr::fn_addr_eq(handler, DETACH)) {
                return entry.data.cast();
            }
            cleanup = entry.next;
        }
    }
    ptr::null_mut()
}

const DETACH: unsafe extern "C" fn(*mut c_void) = detach;

unsafe extern "C" fn detach(readers: *mut c_void) {
    // SAFETY: the pool passes what `attach` has put there, once.
    guarded((), || drop(unsafe { Box::from_raw(readers.cast::<Readers>()) }));
}
