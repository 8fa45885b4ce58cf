-- Opens what is not open: after a loss of state everything, after a change of limits what is new in them. The caller reckons what new
-- counts have to begin with (src/limit/redis/history.rs), from the book and from the permits on record.

-- Numbers of the limits that have no count here, and whether anything is not open.
local function missing()
  local numbers, is_any = {}, not epoch
  for number, limit in ipairs(spec.limits) do
    if not opened[limit.name] then numbers[#numbers + 1] = number end
  end
  for _, ledger in ipairs(spec.ledgers) do
    if not opened['book/' .. ledger.name] then is_any = true end
  end
  return numbers, is_any or #numbers > 0
end

-- A count as the caller gives it, in place of what may be here under its name.
local function begin(row)
  local limit = spec.limits[row.limit]
  local key = key_of(limit.name, row.tenant)
  if limit.kind == 'ring' then
    redis.call('DEL', key)
    for i = 1, #row.stored, 1000 do
      local times = {}
      for k = i, math.min(i + 999, #row.stored) do times[#times + 1] = digits(row.stored[k]) end
      redis.call('RPUSH', key, unpack(times))
    end
  else
    redis.call('SET', key, cmsgpack.pack(row.stored))
  end
  if row.tenant == '' then
    redis.call('SADD', base .. 'own', key)
  else
    redis.call('PEXPIRE', key, digits(math.ceil((limit.memory + spec.longest + SLACK) / 1000)))
    redis.call('ZADD', key_of('tenants/' .. limit.name, ''), digits(now), row.tenant)
    redis.call('SADD', base .. 'own', key_of('tenants/' .. limit.name, ''))
  end
end

-- Permits that others were given since the caller read the record count too.
local function charge_since(numbers, newest_read)
  local recent = redis.call('LRANGE', key_of('recent', ''), 0, -1)
  for _, permit in ipairs(recent) do
    local at, tenant = string.match(permit, '^(%d+) %-?%d+ (.*)$')
    if tonumber(at) > newest_read then
      for _, number in ipairs(numbers) do
        charge(count_of(number, spec.limits[number].per_tenant and tenant or '', 0), tonumber(at))
      end
    end
  end
  save_counts()
  all = {}
end

-- Says whether permits may be given.
local function open()
  local numbers, is_any = missing()
  if not is_any then return true, numbers end
  is_changed = true
  -- The history has to have been read after the loss was seen: the token tells.
  if not call.history or call.token ~= (epoch or cold) then
    if not epoch then cold = cold or call.nonce end
    return false, numbers
  end
  local history = call.history
  if not epoch then
    epoch, cold, since, settled = cold, nil, history.opened_at, ahead
    gate = math.max(gate, history.gate)
  end
  local known, is_new = {}, {}
  for number, limit in ipairs(spec.limits) do known[limit.name] = opened[limit.name] or history.opened[number] end
  for number, ledger in ipairs(spec.ledgers) do
    local name = 'book/' .. ledger.name
    is_new[number], known[name] = not opened[name], 0
  end
  -- What is of no limit any more is not charged from here on: should it come back, it begins anew.
  opened = known
  for _, number in ipairs(numbers) do
    local name = spec.limits[number].name
    for _, tenant in ipairs(redis.call('ZRANGE', key_of('tenants/' .. name, ''), 0, -1)) do
      redis.call('UNLINK', key_of(name, tenant))
    end
    redis.call('DEL', key_of('tenants/' .. name, ''))
  end
  for _, row in ipairs(history.counts) do begin(row) end
  for _, row in ipairs(history.rows) do
    if is_new[row.ledger] then
      pay(row.ledger, row.tenant, row.ends_at, row.calls)
      account_of(row.ledger, row.tenant).subs[row.ends_at].used = row.calls
    end
  end
  save_accounts()
  accounts = {}
  charge_since(numbers, history.newest)
  redis.call('SADD', base .. 'own', key_of('recent', ''), key_of('undone', ''))
  return true, numbers
end

local kept_gate = read_state()
if not edges_fit() then return { 'edges', told, '', 0, ahead, {}, {}, {} } end
if call.close then
  gate = math.max(gate, now + call.close)
  redis.call('PUBLISH', call.channel, spec.pool .. ' ' .. digits(gate))
end
local is_open, missing_numbers = open()
save_state(kept_gate)
if not is_open then
  -- Since when all permits are on record, if any are.
  local recent = epoch and redis.call('LRANGE', key_of('recent', ''), 0, -1) or {}
  local from = since
  if #recent >= spec.most_recent then from = math.max(since, tonumber(string.match(recent[1], '^%d+'))) end
  return { epoch and 'changed' or 'cold', told, epoch or cold, gate, ahead, missing_numbers, { from, settled }, recent }
end
for number, limit in ipairs(spec.limits) do
  if limit.per_tenant then
    personal[#personal + 1] = number
  else
    shared[#shared + 1] = count_of(number, '', call.most)
  end
end
