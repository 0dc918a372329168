//! A timer of nginx's event loop.

use core::ffi::c_void;
use core::{mem, ptr};

use nginx_sys::{
    ngx_add_timer, ngx_connection_t, ngx_del_timer, ngx_event_t, ngx_log_t, ngx_msec_t,
};

/// A timer that does not keep an exiting worker from its end. Its owner cancels it before it is dropped.
pub(crate) struct Timer {
    event: Box<ngx_event_t>,
    /// `ngx_event_t` needs a connection, of which nginx reads only the log.
    _connection: Box<ngx_connection_t>,
}

impl Timer {
    /// A timer that is not set. nginx calls `handler` when it is due.
    pub(crate) fn new(
        handler: unsafe extern "C" fn(*mut ngx_event_t),
        log: *mut ngx_log_t,
    ) -> Self {
        // SAFETY: zeros are what nginx itself starts from for events and connections.
        let (mut event, mut connection) = unsafe {
            (Box::new(mem::zeroed::<ngx_event_t>()), Box::new(mem::zeroed::<ngx_connection_t>()))
        };
        connection.fd = -1;
        event.handler = Some(handler);
        event.log = log;
        event.data = ptr::from_mut(connection.as_mut()).cast::<c_void>();
        event.set_cancelable(1);
        Self { event, _connection: connection }
    }

    /// Lets it be due in so many milliseconds, unless it is set.
    pub(crate) fn set(&mut self, pause: ngx_msec_t) {
        if self.event.timer_set() == 0 {
            // SAFETY: the event was zeroed, and stays in its box until the timer is cancelled.
            unsafe { ngx_add_timer(self.event.as_mut(), pause) };
        }
    }

    /// Lets it not be due any more.
    pub(crate) fn cancel(&mut self) {
        if self.event.timer_set() == 1 {
            // SAFETY: the timer is set.
            unsafe { ngx_del_timer(self.event.as_mut()) };
        }
    }
}
