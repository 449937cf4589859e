//! From request to verdict, without sockets or storage.
