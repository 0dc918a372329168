# How make builds the module's library: cargo knows whether there is something to do.

cat << END                                                    >> $NGX_MAKEFILE

.PHONY:	ngx_tirreno_cargo

ngx_tirreno_cargo:

$ngx_tirreno_lib:	ngx_tirreno_cargo
	NGINX_SOURCE_DIR="$PWD" NGINX_BUILD_DIR="$ngx_tirreno_objs" \\
	CARGO_TARGET_DIR="$ngx_tirreno_target" \\
	cargo rustc --profile $ngx_tirreno_profile --locked --lib --crate-type staticlib --no-default-features \\
		--manifest-path "$ngx_addon_dir/Cargo.toml"

END
