//! Who is reachable through whom: intent to BIRD configuration, and what BIRD says.
