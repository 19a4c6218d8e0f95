//! From the model to what the kernel should hold.
