//! The programs and the verifier.

use aya::programs::SchedClassifier;
use weft_ebpf::programs;

use crate::support::Bed;

#[test]
fn the_verifier_accepts_every_program() {
    let Some(_bed) = Bed::make("the_verifier_accepts_every_program") else { return };
    let mut ebpf = programs::load(&programs::object().unwrap(), None).unwrap();
    let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    let attached = programs::PROGRAMS.map(|(name, _)| name);
    for name in &names {
        assert!(attached.contains(&name.as_str()) || name == "shim", "{name} is attached nowhere");
    }
    assert_eq!(names.len(), attached.len() + 1);
    let shim: &mut SchedClassifier = ebpf.program_mut("shim").unwrap().try_into().unwrap();
    shim.load().unwrap();
}
