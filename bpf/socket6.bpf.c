/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Connections over IPv6, but for mapped addresses, which are those of IPv4. See socket4.bpf.c. */
#include "balance.h"

extern const struct map frontends6, slots6, endpoints6, node_addresses6, original6, datagrams6, counters6, meta6;

#define LOOPBACK6 ((struct address6){ { 0, 0, 0, 0x01000000 } })

ALWAYS_INLINE u32 check_of(const struct address6 *address, u16 port)
{
	const u32 *words = address->words;

	return words[0] ^ words[1] ^ words[2] ^ words[3] ^ (port * CHECK_FACTOR);
}

/* A frontend at the address, or else, with address 0, one of the node's ports. */
ALWAYS_INLINE int find(const struct address6 *address, u16 port, u8 protocol, int host, struct frontend *copy)
{
	struct key6 key = { .address = *address, .port = port, .protocol = protocol };
	struct key6 any = { .port = port, .protocol = protocol };
	struct frontend *frontend = map_lookup(&frontends6, &key);
	u32 *node;

	if (frontend)
		return read_frontend(frontend, check_of(&key.address, key.port), copy);
	frontend = map_lookup(&frontends6, &any);
	if (!frontend || !read_frontend(frontend, check_of(&any.address, any.port), copy))
		return 0;
	node = map_lookup(&node_addresses6, &key.address);
	return node && (host || !(*node & NODE_ADDRESS_HOST_ONLY));
}

/* The frontend that serves the address for this socket. */
ALWAYS_INLINE int find_for(struct socket_address *ctx, const struct meta *meta, const struct address6 *address, u16 port,
			   u8 protocol, struct frontend *frontend)
{
	int host;

	if (!meta->on)
		return 0;
	host = is_host(ctx, meta);
	return find(address, port, protocol, host, frontend) && (host || !(frontend->flags & FRONTEND_HOST_ONLY));
}

/* Where an endpoint is, unless its place was given to another one meanwhile. */
ALWAYS_INLINE int read_endpoint(u32 id, u16 epoch, struct address6 *address, u16 *port)
{
	volatile struct endpoint6 *place = map_lookup(&endpoints6, &id);
	int n;

	if (!place || place->epoch != epoch)
		return 0;
#pragma unroll
	for (n = 0; n < 4; n++)
		address->words[n] = place->address.words[n];
	*port = place->port;
	return place->epoch == epoch;
}

ALWAYS_INLINE int is_same(const struct address6 *a, const struct address6 *b)
{
	return !((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) | (a->words[2] ^ b->words[2]) |
		 (a->words[3] ^ b->words[3]));
}

/* Keeps in the socket where it wanted to go. False: there is no memory for it. */
ALWAYS_INLINE int keep(struct socket_address *ctx, const struct original6 *original)
{
	struct original6 *kept = ctx->sk ? storage_get(&original6, ctx->sk, NULL, STORAGE_CREATE) : NULL;

	if (!kept)
		return 0;
	*kept = *original;
	return 1;
}

/* Chooses an endpoint and keeps the original in the socket. False: the address stays. */
ALWAYS_INLINE int translate(struct socket_address *ctx, struct original6 *original)
{
	struct meta *meta = switched_on(&meta6);
	struct frontend frontend;
	u64 slot;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		original->endpoint = LOOPBACK6;
		original->endpoint_port = (u16)meta->canary_port;
		return keep(ctx, original);
	}
	if (!find_for(ctx, meta, &original->address, original->port, (u8)ctx->protocol, &frontend))
		return 0;
	slot = choose_slot(&slots6, &frontend, random_u32());
	if (slot == NO_SLOT ||
	    !read_endpoint(SLOT_ENDPOINT(slot), SLOT_ENDPOINT_EPOCH(slot), &original->endpoint, &original->endpoint_port) ||
	    !keep(ctx, original))
		return 0;
	count(&counters6, SLOT_ENDPOINT(slot));
	return 1;
}

/* What an earlier connect of this socket kept is no longer true. */
ALWAYS_INLINE void forget(struct socket_address *ctx)
{
	struct original6 *kept = ctx->sk ? storage_get(&original6, ctx->sk, NULL, 0) : NULL;

	if (kept)
		kept->endpoint_port = 0;
}

ALWAYS_INLINE int has_address(const struct datagram6 *place, const struct address6 *address, u16 port)
{
	return place->port == port && is_same(&place->address, address);
}

ALWAYS_INLINE int has_endpoint(const struct datagram6 *place, const struct address6 *address, u16 port)
{
	return place->endpoint_port == port && is_same(&place->endpoint, address);
}

#define ADDRESS struct address6
#define DATAGRAM datagram6
#define DATAGRAMS datagrams6
#define DATAGRAMS_OF_SOCKETS datagrams6
#include "datagrams.h"

/* Where a datagram goes. False: the address stays. */
ALWAYS_INLINE int route(struct socket_address *ctx, struct datagram6 *datagram)
{
	struct meta *meta = switched_on(&meta6);
	struct address6 address;
	struct frontend frontend;
	u64 slot;
	u16 port;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		datagram->endpoint = LOOPBACK6;
		datagram->endpoint_port = (u16)meta->canary_port;
		return remember(ctx, datagram);
	}
	if (!find_for(ctx, meta, &datagram->address, datagram->port, UDP, &frontend))
		return 0;
	if (recall(ctx, datagram) && datagram->pool == frontend.pool &&
	    read_endpoint(datagram->number, datagram->epoch, &address, &port) && port == datagram->endpoint_port &&
	    is_same(&address, &datagram->endpoint))
		return 1;
	slot = choose_slot(&slots6, &frontend, number_of(ctx, check_of(&datagram->address, datagram->port)));
	if (slot == NO_SLOT || !read_endpoint(SLOT_ENDPOINT(slot), SLOT_ENDPOINT_EPOCH(slot), &datagram->endpoint,
					      &datagram->endpoint_port))
		return 0;
	datagram->number = SLOT_ENDPOINT(slot);
	datagram->pool = frontend.pool;
	datagram->epoch = SLOT_ENDPOINT_EPOCH(slot);
	if (!remember(ctx, datagram))
		return 0;
	count(&counters6, datagram->number);
	return 1;
}

/* Where the socket wanted to connect to, if this is where it is connected. */
ALWAYS_INLINE int find_original(struct socket_address *ctx, struct address6 *address, u16 *port)
{
	struct original6 *kept = ctx->sk ? storage_get(&original6, ctx->sk, NULL, 0) : NULL;

	if (!kept || !kept->endpoint_port || kept->endpoint_port != *port || !is_same(&kept->endpoint, address))
		return 0;
	*address = kept->address;
	*port = kept->port;
	return 1;
}

/* Where the socket was connected to, if this is where it wanted to. */
ALWAYS_INLINE int find_endpoint(struct socket_address *ctx, struct address6 *address, u16 *port)
{
	struct original6 *kept = ctx->sk ? storage_get(&original6, ctx->sk, NULL, 0) : NULL;

	if (!kept || !kept->endpoint_port || kept->port != *port || !is_same(&kept->address, address))
		return 0;
	*address = kept->endpoint;
	*port = kept->endpoint_port;
	return 1;
}

/* The kernel lets a word of an address be read and written, and not more. */
ALWAYS_INLINE struct address6 address_of(const struct socket_address *ctx)
{
	return (struct address6){
		{ ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] }
	};
}

ALWAYS_INLINE void set_address(struct socket_address *ctx, const struct address6 *address, u16 port)
{
	volatile u32 *words = ctx->user_ip6;

	words[0] = address->words[0];
	words[1] = address->words[1];
	words[2] = address->words[2];
	words[3] = address->words[3];
	ctx->user_port = port;
}

SECTION("connect6")
int kp_connect6(struct socket_address *ctx)
{
	struct original6 original = { .address = address_of(ctx), .port = (u16)ctx->user_port };

	if (ctx->protocol != TCP && ctx->protocol != UDP)
		return PASS;
	if (!is_mapped(ctx) && translate(ctx, &original))
		set_address(ctx, &original.endpoint, original.endpoint_port);
	else
		forget(ctx);
	return PASS;
}

SECTION("getpeername6")
int kp_peername6(struct socket_address *ctx)
{
	struct address6 peer = address_of(ctx);
	u16 port = (u16)ctx->user_port;

	if (find_original(ctx, &peer, &port))
		set_address(ctx, &peer, port);
	return PASS;
}

SECTION("sendmsg6")
int kp_sendmsg6(struct socket_address *ctx)
{
	struct datagram6 datagram = { .address = address_of(ctx), .port = (u16)ctx->user_port };
	struct address6 named = datagram.address;
	u16 port = datagram.port;

	if (ctx->protocol != UDP || is_mapped(ctx))
		return PASS;
	/* A socket that has a peer hears of that alone, so what it sends goes there or is left to the rules. */
	if (is_connected(ctx)) {
		if (find_endpoint(ctx, &named, &port))
			set_address(ctx, &named, port);
		return PASS;
	}
	if (route(ctx, &datagram))
		set_address(ctx, &datagram.endpoint, datagram.endpoint_port);
	else
		named_directly(ctx, &named, port);
	return PASS;
}

SECTION("recvmsg6")
int kp_recvmsg6(struct socket_address *ctx)
{
	struct address6 sender = address_of(ctx);
	u16 port = (u16)ctx->user_port;

	if (is_mapped(ctx))
		return PASS;
	if (is_connected(ctx) ? find_original(ctx, &sender, &port) : find_sender(ctx, &sender, &port))
		set_address(ctx, &sender, port);
	return PASS;
}

/* Tells the agent of the sockets of UDP of a network namespace that were sent to an endpoint when they connected. */
SECTION("iter")
int kp_kept6(struct each_socket *ctx)
{
	/* Read once: the verifier of Linux 6.1 does not see that it is the same, and not NULL, when it is read again. */
	struct socket *sk = ctx->sk;
	const struct original6 *kept = sk ? storage_get(&original6, sk, NULL, 0) : NULL;
	struct told6 told;

	if (!kept || !kept->endpoint_port)
		return 0;
	told.cookie = cookie_of(sk);
	told.original = *kept;
	write_out(ctx->iteration->out, &told, sizeof(told));
	return 0;
}

SECTION("license") const char terms[] = "Dual MIT/GPL";
