//! The decision by itself, timed in the kernel: PROG_TEST_RUN of the `shim` program with the maps of a running agent.
//!
//! It has to run in an enrolled cgroup: the decision looks at the cgroup of the process that asks.

use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use weft_ebpf::cgroup::Cgroup;
use weft_ebpf::pins::Pins;
use weft_ebpf::programs;

use super::client::Range;

/// The program, and everything that was loaded with it.
pub struct Shim(Ebpf);

/// See the program for the layout.
const ADDRESS: usize = 14;
const PACKET: usize = ADDRESS + 24 + 20;

impl Shim {
    /// Loads it with the maps that are pinned for this attach point.
    pub fn load(mesh: &Path) -> Result<Self> {
        let pins = Pins::of(&Cgroup::open(mesh)?, false)?;
        let mut ebpf = programs::load(&programs::object()?, Some(&pins))?;
        program(&mut ebpf)?.load()?;
        Ok(Self(ebpf))
    }

    /// Nanoseconds of one run, and the verdict of the last one.
    pub fn run(&mut self, range: Range, repeat: u32) -> Result<(f64, u32)> {
        let mut packet = [0_u8; PACKET];
        let words = &mut packet[ADDRESS..];
        words[..16].copy_from_slice(&if range.base.is_unspecified() {
            [0; 16]
        } else {
            range.base.to_ipv6_mapped().octets()
        });
        words[16..20].copy_from_slice(&u32::from(range.port).to_ne_bytes());
        words[20..24].copy_from_slice(&range.spread.to_ne_bytes());
        let options = TestRunOptions { data_in: Some(&packet), repeat, ..TestRunOptions::default() };
        let result = program(&mut self.0)?.test_run(options).context("PROG_TEST_RUN")?;
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut("shim").context("the object has no shim")?.try_into()?)
}
