//! The numbers of the options we say or read.
//!
//! Spec: RFC 2132, RFC 3004 (77), RFC 3046 (82), RFC 4578 (93, 94, 97); 175 is iPXE's.

#![expect(missing_docs, reason = "each constant is the option of that name")]

pub const PAD: u8 = 0;
pub const SUBNET_MASK: u8 = 1;
pub const ROUTER: u8 = 3;
pub const NAME_SERVER: u8 = 6;
pub const HOST_NAME: u8 = 12;
pub const DOMAIN_NAME: u8 = 15;
pub const VENDOR_SPECIFIC: u8 = 43;
pub const REQUESTED_ADDRESS: u8 = 50;
pub const LEASE_TIME: u8 = 51;
pub const OVERLOAD: u8 = 52;
pub const MESSAGE_TYPE: u8 = 53;
pub const SERVER_IDENTIFIER: u8 = 54;
pub const PARAMETER_LIST: u8 = 55;
pub const MESSAGE: u8 = 56;
pub const MESSAGE_SIZE_MAX: u8 = 57;
pub const RENEWAL_TIME: u8 = 58;
pub const REBINDING_TIME: u8 = 59;
pub const VENDOR_CLASS: u8 = 60;
pub const CLIENT_IDENTIFIER: u8 = 61;
pub const TFTP_SERVER_NAME: u8 = 66;
pub const BOOT_FILE: u8 = 67;
pub const USER_CLASS: u8 = 77;
pub const RELAY_AGENT: u8 = 82;
pub const CLIENT_ARCHITECTURE: u8 = 93;
pub const CLIENT_UUID: u8 = 97;
pub const IPXE: u8 = 175;
pub const END: u8 = 255;

/// Sub-options of option 82.
pub mod relay {
    /// Which port of the switch (RFC 3046).
    pub const CIRCUIT: u8 = 1;
    /// The subnet of the client when it is not the relay's address (RFC 3527).
    pub const LINK: u8 = 5;
    /// The address to give as server identifier, so that renewals pass the relay (RFC 5107).
    pub const SERVER_OVERRIDE: u8 = 11;
}
