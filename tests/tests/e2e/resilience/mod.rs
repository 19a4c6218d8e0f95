//! Policies that keep services alive, and what can be seen of them.

mod explain;
