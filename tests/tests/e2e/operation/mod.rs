//! Reload, drain, and starts that must fail well.

mod drain;
mod reload;
mod start;
