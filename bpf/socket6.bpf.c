/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Connections over IPv6, but for mapped addresses, which are those of IPv4. See socket4.bpf.c. */
#include "balance.h"

extern const struct map frontends6, slots6, endpoints6, node_addresses6, original6, counters6, meta6;

#define LOOPBACK6 ((struct address6){ { 0, 0, 0, 0x01000000 } })

ALWAYS_INLINE u32 check_of(const struct address6 *address, u16 port)
{
	const u32 *words = address->words;

	return words[0] ^ words[1] ^ words[2] ^ words[3] ^ (port * CHECK_FACTOR);
}

/* A frontend at the address, or else, with address 0, one of the node's ports. */
ALWAYS_INLINE int find(const struct original6 *original, int host, struct frontend *copy)
{
	struct key6 key = { .address = original->address, .port = original->port, .protocol = TCP };
	struct key6 any = { .port = original->port, .protocol = TCP };
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

/* Where an endpoint is, unless its place was given to another one meanwhile. */
ALWAYS_INLINE int read_endpoint(u64 slot, struct original6 *original)
{
	u32 id = SLOT_ENDPOINT(slot);
	volatile struct endpoint6 *place = map_lookup(&endpoints6, &id);
	int n;

	if (!place || place->epoch != SLOT_ENDPOINT_EPOCH(slot))
		return 0;
#pragma unroll
	for (n = 0; n < 4; n++)
		original->endpoint.words[n] = place->address.words[n];
	original->endpoint_port = place->port;
	return place->epoch == SLOT_ENDPOINT_EPOCH(slot);
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
	int host;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		original->endpoint = LOOPBACK6;
		original->endpoint_port = (u16)meta->canary_port;
		return keep(ctx, original);
	}
	if (!meta->on)
		return 0;
	host = is_host(ctx, meta);
	if (!find(original, host, &frontend) || (frontend.flags & FRONTEND_HOST_ONLY && !host))
		return 0;
	slot = choose_slot(&slots6, &frontend);
	if (slot == NO_SLOT || !read_endpoint(slot, original) || !keep(ctx, original))
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

ALWAYS_INLINE int is_mapped(const struct socket_address *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == 0xffff0000;
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

	if (ctx->protocol != TCP)
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
	struct original6 *kept = ctx->sk ? storage_get(&original6, ctx->sk, NULL, 0) : NULL;
	struct address6 peer = address_of(ctx);

	if (!kept || !kept->endpoint_port || kept->endpoint_port != (u16)ctx->user_port)
		return PASS;
	if (kept->endpoint.words[0] != peer.words[0] || kept->endpoint.words[1] != peer.words[1] ||
	    kept->endpoint.words[2] != peer.words[2] || kept->endpoint.words[3] != peer.words[3])
		return PASS;
	set_address(ctx, &kept->address, kept->port);
	return PASS;
}

SECTION("license") const char terms[] = "Dual MIT/GPL";
