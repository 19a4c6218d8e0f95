//! What keeps a service and its clients safe from each other.

mod pool;
