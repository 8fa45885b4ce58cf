-- Opens what is not open yet: after a loss of state everything, after a change of limits whatever is new in them. The caller computes what
-- new counts begin with (src/limit/redis/history.rs), from the book and from the permits on record. Only functions, which take the pool `p`
-- first (see pool.lua).

-- The numbers of the limits that have no count here, and whether anything is not open.
local function not_open(p)
  local numbers, is_any = {}, not p.epoch
  for number, limit in ipairs(p.spec.limits) do
    if not p.opened[limit.name] then numbers[#numbers + 1] = number end
  end
  for _, ledger in ipairs(p.spec.ledgers) do
    if not p.opened['book/' .. ledger.name] then is_any = true end
  end
  return numbers, is_any or #numbers > 0
end

-- Stores a count as the caller computed it, in place of what may be here under its name.
local function store_count(p, row)
  local limit = p.spec.limits[row.limit]
  local key, until_at = key_of(p, limit.name, row.tenant), p.now + limit.memory + p.spec.longest
  if limit.kind == 'exact' then
    redis.call('DEL', key)
    for i = 1, #row.stored, 1000 do
      local times = {}
      for k = i, math.min(i + 999, #row.stored) do times[#times + 1] = digits(row.stored[k]) end
      redis.call('RPUSH', key, unpack(times))
    end
    keep_key(p, key, row.tenant, true, until_at)
  else
    put(p, key, row.tenant, true, until_at, cmsgpack.pack(row.stored))
  end
  if row.tenant ~= '' then
    local tenants = key_of(p, 'tenants/' .. limit.name, '')
    redis.call('ZADD', tenants, digits(p.now), row.tenant)
    add_own(p, tenants)
  end
end

-- Deletes what tenants have under these limits.
local function delete_tenants(p, numbers)
  for _, number in ipairs(numbers) do
    local name = p.spec.limits[number].name
    local tenants = key_of(p, 'tenants/' .. name, '')
    for _, tenant in ipairs(redis.call('ZRANGE', tenants, 0, -1)) do redis.call('UNLINK', key_of(p, name, tenant)) end
    redis.call('DEL', tenants)
  end
end

-- Charges the permits that others were given since the caller read the record.
local function charge_since(p, numbers, newest_read)
  for _, permit in ipairs(recent_permits(p)) do
    local at, tenant = string.match(permit, '^(%d+) %-?%d+ (.*)$')
    if tonumber(at) > newest_read then
      for _, number in ipairs(numbers) do
        charge(p, count_of(p, number, p.spec.limits[number].per_tenant and tenant or '', 0), tonumber(at))
      end
    end
  end
  save_counts(p)
end

-- Puts the limits of `numbers` in force, with the history that the caller has computed.
local function begin(p, numbers, history)
  if not p.epoch then
    p.epoch, p.cold, p.since, p.settled = p.cold, nil, history.opened_at, p.ahead
    p.gate = math.max(p.gate, history.gate)
    redis.call('HSET', KEYS[1], 'floor', digits(history.gate)) -- the gate is never opened below this (see gate.rs)
  end
  -- A limit that is not in force any more is not charged from here on: if it comes back, it begins anew.
  local opened, is_new = {}, {}
  for number, limit in ipairs(p.spec.limits) do opened[limit.name] = p.opened[limit.name] or history.opened[number] end
  for number, ledger in ipairs(p.spec.ledgers) do
    local name = 'book/' .. ledger.name
    is_new[number], opened[name] = not p.opened[name], 0
  end
  p.opened = opened
  delete_tenants(p, numbers)
  for _, row in ipairs(history.counts) do store_count(p, row) end
  for _, row in ipairs(history.rows) do
    if is_new[row.ledger] then pay(p, row.ledger, row.tenant, row.ends_at, row.calls).used = row.calls end
  end
  save_accounts(p)
  charge_since(p, numbers, history.newest)
  add_own(p, key_of(p, 'recent', ''), key_of(p, 'undone', ''))
end

-- Opens the pool if the caller has brought what that takes. Gives the numbers of the limits whose history is still missing, or nothing when
-- permits may be given.
local function open(p, args)
  local numbers, is_any = not_open(p)
  if not is_any then return nil end
  p.is_changed = true
  -- The token proves that the history was read after the loss was noticed.
  if not args.history or args.token ~= (p.epoch or p.cold) then
    if not p.epoch then p.cold = p.cold or args.nonce end
    return numbers
  end
  begin(p, numbers, args.history)
  return nil
end

-- Asks the caller for the history of these limits. Carries the permits on record, and since when all of them are there.
local function reply_not_open(p, numbers)
  local recent, since = p.epoch and recent_permits(p) or {}, p.since
  if #recent >= p.spec.most_recent then since = math.max(since, tonumber(string.match(recent[1], '^%d+'))) end
  return reply(p, p.epoch and 'changed' or 'cold', numbers, { since, p.settled }, recent)
end
