//! Every program loads, and the verifier accepts it.
#![allow(clippy::unwrap_used, missing_docs)]

#[test]
fn loads() {
    let object = weft_ebpf::programs::object().unwrap();
    let started = std::time::Instant::now();
    match weft_ebpf::programs::load(&object, None) {
        Ok(_) => eprintln!("loaded in {:?}", started.elapsed()),
        Err(error) => panic!("{error}"),
    }
}
