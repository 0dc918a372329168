/*
 * The single bits of nginx's request that the module reads or sets.
 *
 * bindgen before 0.73 computes wrong places for bits that stand behind something smaller than an `unsigned`
 * (rust-lang/rust-bindgen#3384), as those of a request do since nginx 1.30: reading the bindings' would read, and
 * setting would set, others than those that are meant.
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
