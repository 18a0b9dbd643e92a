/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Connections over IPv4, also those of IPv6 sockets that name the address as ::ffff:10.96.0.1.
 *
 * connect: the address of a Service becomes that of an endpoint, and the socket keeps what it was.
 * getpeername: it is shown again.
 */
#include "balance.h"

extern const struct map frontends4, slots4, endpoints4, node_addresses4, original4, counters4, meta4;

#define LOOPBACK4 0x0100007f

ALWAYS_INLINE u32 check_of(u32 address, u16 port)
{
	return address ^ (port * CHECK_FACTOR);
}

/* A frontend at the address, or else, with address 0, one of the node's ports. */
ALWAYS_INLINE int find(u32 address, u16 port, int host, struct frontend *copy)
{
	struct key4 key = { .address = address, .port = port, .protocol = TCP };
	struct frontend *frontend = map_lookup(&frontends4, &key);
	u32 *node;

	if (frontend)
		return read_frontend(frontend, check_of(address, port), copy);
	key.address = 0;
	frontend = map_lookup(&frontends4, &key);
	if (!frontend || !read_frontend(frontend, check_of(0, port), copy))
		return 0;
	node = map_lookup(&node_addresses4, &address);
	return node && (host || !(*node & NODE_ADDRESS_HOST_ONLY));
}

/* Keeps in the socket where it wanted to go. False: there is no memory for it. */
ALWAYS_INLINE int keep(struct socket_address *ctx, const struct original4 *original)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, STORAGE_CREATE) : NULL;

	if (!kept)
		return 0;
	*kept = *original;
	return 1;
}

/* Chooses an endpoint and keeps the original in the socket. False: the address stays. */
ALWAYS_INLINE int translate(struct socket_address *ctx, struct original4 *original)
{
	struct meta *meta = switched_on(&meta4);
	struct endpoint4 *place, endpoint;
	struct frontend frontend;
	u64 slot;
	u32 id;
	int host;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		original->endpoint = LOOPBACK4;
		original->endpoint_port = (u16)meta->canary_port;
		return keep(ctx, original);
	}
	if (!meta->on)
		return 0;
	host = is_host(ctx, meta);
	if (!find(original->address, original->port, host, &frontend) || (frontend.flags & FRONTEND_HOST_ONLY && !host))
		return 0;
	slot = choose_slot(&slots4, &frontend);
	if (slot == NO_SLOT)
		return 0;
	id = SLOT_ENDPOINT(slot);
	place = map_lookup(&endpoints4, &id);
	if (!place)
		return 0;
	*(u64 *)&endpoint = *(volatile u64 *)place;
	if (endpoint.epoch != SLOT_ENDPOINT_EPOCH(slot))
		return 0;
	original->endpoint = endpoint.address;
	original->endpoint_port = endpoint.port;
	if (!keep(ctx, original))
		return 0;
	count(&counters4, id);
	return 1;
}

/* What an earlier connect of this socket kept is no longer true. */
ALWAYS_INLINE void forget(struct socket_address *ctx)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, 0) : NULL;

	if (kept)
		kept->endpoint_port = 0;
}

ALWAYS_INLINE void show_original(struct socket_address *ctx, u32 *address, u32 *port, int *shown)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, 0) : NULL;

	*shown = 0;
	if (!kept || !kept->endpoint_port)
		return;
	if (kept->endpoint != *address || kept->endpoint_port != (u16)*port)
		return;
	*address = kept->address;
	*port = kept->port;
	*shown = 1;
}

ALWAYS_INLINE int is_mapped(const struct socket_address *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == 0xffff0000;
}

SECTION("connect4")
int kp_connect4(struct socket_address *ctx)
{
	struct original4 original = { .address = ctx->user_ip4, .port = (u16)ctx->user_port };

	if (ctx->protocol != TCP)
		return PASS;
	if (translate(ctx, &original)) {
		ctx->user_ip4 = original.endpoint;
		ctx->user_port = original.endpoint_port;
	} else {
		forget(ctx);
	}
	return PASS;
}

SECTION("connect6")
int kp_connect4in6(struct socket_address *ctx)
{
	struct original4 original = { .address = ctx->user_ip6[3], .port = (u16)ctx->user_port };

	if (ctx->protocol != TCP)
		return PASS;
	if (is_mapped(ctx) && translate(ctx, &original)) {
		ctx->user_ip6[3] = original.endpoint;
		ctx->user_port = original.endpoint_port;
	} else {
		forget(ctx);
	}
	return PASS;
}

SECTION("getpeername4")
int kp_peername4(struct socket_address *ctx)
{
	u32 address = ctx->user_ip4, port = ctx->user_port;
	int shown;

	show_original(ctx, &address, &port, &shown);
	if (shown) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return PASS;
}

SECTION("getpeername6")
int kp_peername4in6(struct socket_address *ctx)
{
	u32 address = ctx->user_ip6[3], port = ctx->user_port;
	int shown;

	if (!is_mapped(ctx))
		return PASS;
	show_original(ctx, &address, &port, &shown);
	if (shown) {
		ctx->user_ip6[3] = address;
		ctx->user_port = port;
	}
	return PASS;
}

SECTION("license") const char terms[] = "Dual MIT/GPL";
