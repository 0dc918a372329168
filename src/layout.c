/*
 * What of nginx's request only a C compiler finds in every version.
 *
 * bindgen before 0.73 computes wrong places for bits that stand behind something smaller than an `unsigned`
 * (rust-lang/rust-bindgen#3384), as those of a request do since nginx 1.30: reading the bindings' would read, and
 * setting would set, others than those that are meant. nginx 1.22 keeps the headers Cookie in an array, later
 * versions in a list.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

ngx_uint_t
ngx_http_tirreno_header_only(const ngx_http_request_t *r)
{
    return r->header_only;
}

ngx_uint_t
ngx_http_tirreno_error_page(const ngx_http_request_t *r)
{
    return r->error_page;
}

void
ngx_http_tirreno_need_in_memory(ngx_http_request_t *r)
{
    r->filter_need_in_memory = 1;
}

void
ngx_http_tirreno_set_header_sent(ngx_http_request_t *r)
{
    r->header_sent = 1;
}

/* The request's header Cookie that follows `last`; without it, the first one. `n` is its number from 0. */
const ngx_table_elt_t *
ngx_http_tirreno_cookie(const ngx_http_request_t *r, const ngx_table_elt_t *last, ngx_uint_t n)
{
#if (nginx_version >= 1023000)
    (void) n;
    return last ? last->next : r->headers_in.cookie;
#else
    ngx_table_elt_t *const *cookies = r->headers_in.cookies.elts;
    (void) last;
    return n < r->headers_in.cookies.nelts ? cookies[n] : NULL;
#endif
}
