/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is in the maps. The other side is crates/ebpf/src/schema.rs; sizes are asserted in both. Addresses and ports are in
 * network byte order, everything else in the host's. No padding that is not named.
 */
#ifndef KUBE_PROXY_SCHEMA_H
#define KUBE_PROXY_SCHEMA_H

#include "kernel.h"

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)

/* Value of a frontend: an extent of slots, which all carry the extent's epoch. */
struct frontend {
	/* Made of the key. Since Linux 6.1 the memory of an element may become another one's while a program reads it. */
	u32 check;
	u32 base;
	u32 count;
	u16 flags;
	u16 epoch;
	/* Of what it has endpoints: as long as that is the same, datagrams may go on to the endpoint that they went to before. */
	u32 pool;
};
SIZE(struct frontend, 20);

/* Sockets outside of the host's network namespace are not translated: their packets have to be masqueraded. */
#define FRONTEND_HOST_ONLY 1

/* Written and read as one u64: endpoint in the lower half, then the extent's epoch, then the endpoint's. */
#define SLOT_ENDPOINT(slot) ((u32)(slot))
#define SLOT_EXTENT_EPOCH(slot) ((u16)((slot) >> 32))
#define SLOT_ENDPOINT_EPOCH(slot) ((u16)((slot) >> 48))

/* A node's address whose node ports are reached only from the host's network namespace. */
#define NODE_ADDRESS_HOST_ONLY 1

/* The only entry of the map `meta`; the agent writes it while programs run. */
struct meta {
	/* 0: translate nothing. */
	u64 on;
	/* The network namespace of the node itself. */
	u64 host_netns;
	/* The agent's own socket that proves the hook: it is sent to this port of the loopback address. 0: none. */
	u64 canary_socket;
	u64 canary_port;
	/* Written by the program: the namespace of that socket. */
	u64 canary_netns;
	/* The agent's own. */
	u64 complete;
	u64 reserved[2];
};
SIZE(struct meta, 64);

/* By number of the endpoint: connections that were translated to it, and sockets that began to send it datagrams. */
struct counter {
	u64 translated;
};
SIZE(struct counter, 8);

struct key4 {
	u32 address;
	u16 port;
	u8 protocol;
	u8 zero;
};
SIZE(struct key4, 8);

struct endpoint4 {
	u32 address;
	u16 port;
	u16 epoch;
};
SIZE(struct endpoint4, 8);

/* In the socket: where it wanted to go. `endpoint_port` 0: nothing is kept. */
struct original4 {
	u32 address;
	u32 endpoint;
	u16 port;
	u16 endpoint_port;
	u32 zero;
};
SIZE(struct original4, 16);

/* What the agent is told of a socket that keeps it. */
struct told4 {
	u64 cookie;
	struct original4 original;
};
SIZE(struct told4, 24);

/* To which addresses of Services a socket can send datagrams without the rules. */
#define DATAGRAM_PLACES 4

/* Where the datagrams to an address go. `endpoint_port` 0: to none. */
struct datagram4 {
	u32 address;
	u32 endpoint;
	u16 port;
	u16 endpoint_port;
	/* The endpoint by number, with its epoch, as a member of the pool. */
	u32 number;
	u32 pool;
	u16 epoch;
	u16 zero;
};
SIZE(struct datagram4, 24);

/* In the socket. Several threads may send at once. */
struct datagrams4 {
	struct bpf_spin_lock lock;
	u32 zero;
	struct datagram4 places[DATAGRAM_PLACES];
};
SIZE(struct datagrams4, 104);

struct address6 {
	u32 words[4];
};

struct key6 {
	struct address6 address;
	u16 port;
	u8 protocol;
	u8 zero;
};
SIZE(struct key6, 20);

/* The epoch is 0 while the rest is written. */
struct endpoint6 {
	struct address6 address;
	u16 port;
	u16 epoch;
	u32 zero;
};
SIZE(struct endpoint6, 24);

struct original6 {
	struct address6 address;
	struct address6 endpoint;
	u16 port;
	u16 endpoint_port;
	u32 zero;
};
SIZE(struct original6, 40);

struct told6 {
	u64 cookie;
	struct original6 original;
};
SIZE(struct told6, 48);

struct datagram6 {
	struct address6 address;
	struct address6 endpoint;
	u16 port;
	u16 endpoint_port;
	u32 number;
	u32 pool;
	u16 epoch;
	u16 zero;
};
SIZE(struct datagram6, 48);

struct datagrams6 {
	struct bpf_spin_lock lock;
	u32 zero;
	struct datagram6 places[DATAGRAM_PLACES];
};
SIZE(struct datagrams6, 200);

#endif
