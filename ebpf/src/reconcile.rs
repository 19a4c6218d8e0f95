//! Brings the kernel's maps in line with what is desired.
