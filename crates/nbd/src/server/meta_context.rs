//! LIST_META_CONTEXT and SET_META_CONTEXT: which answers BLOCK_STATUS can give.
//!
//! We know one context, base:allocation. A SET always replaces what an earlier SET chose, also when it fails: a client
//! never ends up with a context it did not ask for last.

use bytes::{BufMut, BytesMut};

use super::negotiation::{Negotiation, error, option_reply};
use crate::protocol::{BASE_ALLOCATION, Fields, option, reply};

/// The id of base:allocation in BLOCK_STATUS replies.
pub(super) const ALLOCATION_ID: u32 = 1;
/// In a list the id has no meaning and is zero.
const NO_ID: u32 = 0;
/// Asks a list for everything in our one namespace.
const BASE_WILDCARD: &[u8] = b"base:";

/// Answers LIST_META_CONTEXT.
pub(super) fn list(negotiation: &Negotiation<'_>, data: &[u8], out: &mut BytesMut) {
    let code = option::LIST_META_CONTEXT;
    let Some(queries) = queries(negotiation, code, data, out) else { return };
    let all = queries.is_empty();
    if all || queries.iter().any(|query| *query == BASE_WILDCARD || *query == BASE_ALLOCATION.as_bytes()) {
        context(out, code, NO_ID);
    }
    option_reply(out, code, reply::ACK, &[]);
}

/// Answers SET_META_CONTEXT.
pub(super) fn set(negotiation: &mut Negotiation<'_>, data: &[u8], out: &mut BytesMut) {
    let code = option::SET_META_CONTEXT;
    negotiation.agreed.allocation = false;
    let Some(queries) = queries(negotiation, code, data, out) else { return };
    if queries.contains(&BASE_ALLOCATION.as_bytes()) {
        negotiation.agreed.allocation = true;
        context(out, code, ALLOCATION_ID);
    }
    option_reply(out, code, reply::ACK, &[]);
}

fn context(out: &mut BytesMut, code: u32, id: u32) {
    let mut payload = BytesMut::new();
    payload.put_u32(id);
    payload.put_slice(BASE_ALLOCATION.as_bytes());
    option_reply(out, code, reply::META_CONTEXT, &payload);
}

/// The queries of a valid option, or `None` once an error reply has been written.
fn queries<'d>(negotiation: &Negotiation<'_>, code: u32, data: &'d [u8], out: &mut BytesMut) -> Option<Vec<&'d [u8]>> {
    if !negotiation.agreed.structured {
        error(
            out,
            code,
            reply::ERR_INVALID,
            "metadata contexts need structured replies: ask for STRUCTURED_REPLY first",
        );
        return None;
    }
    let Some((name, queries)) = parse(data) else {
        error(out, code, reply::ERR_INVALID, "the option's lengths do not add up");
        return None;
    };
    if !negotiation.offer.has(name) {
        error(out, code, reply::ERR_UNKNOWN, "no export of that name is here: ask with LIST");
        return None;
    }
    Some(queries)
}

/// Each query takes at least four bytes of the option, so the option's bound also bounds the list.
fn parse(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let mut queries = Vec::new();
    for _ in 0..fields.u32()? {
        queries.push(fields.string()?);
    }
    fields.is_empty().then_some((name, queries))
}
