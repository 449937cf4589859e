//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A static program puts itself in place whenever it starts. Packed, the list of its relative
    // places takes 2 MB less, to carry to every node and to page in. Known to musl since 1.2.4 and
    // to binutils since 2.38.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
