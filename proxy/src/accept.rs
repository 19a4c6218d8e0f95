pub mod detect;
pub mod guard;
pub mod rewind;
