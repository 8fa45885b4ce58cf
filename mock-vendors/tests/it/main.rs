//! The pretend vendors seen through real sockets: they are what every other proof rests on.

mod callbacks;
mod calls;
mod faults;
mod support;
