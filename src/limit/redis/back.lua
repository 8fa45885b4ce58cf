-- What workers report about permits that were given: unused ones, and calls that went out late. Any request may carry such reports. Only
-- functions, which take the pool `p` first (see pool.lua).

-- Takes back permits that will never be used, newest first. What a limit cannot take back exactly stays charged to it.
local function take_back(p, args)
  local undone = key_of(p, 'undone', '')
  -- A new epoch has forgotten them anyway; and a request that arrives twice must not free somebody else's call.
  if #args.undo == 0 or args.undo_epoch ~= p.epoch or redis.call('LPOS', undone, args.nonce) then return end
  redis.call('RPUSH', undone, args.nonce)
  redis.call('LTRIM', undone, -1000, -1)
  for _, permit in ipairs(args.undo) do
    local last, _, whose = newest_permit(p)
    local is_newest = last == permit.at and whose == permit.tenant
    if is_newest then redis.call('RPOP', key_of(p, 'recent', '')) end
    for number, limit in ipairs(p.spec.limits) do
      local c = count_of(p, number, limit.per_tenant and permit.tenant or '', 0)
      if not c.is_new then
        c.shape.undo(c, permit.at, is_newest)
        c.is_charged = true
      end
    end
    use(p, permit.tenant, permit.at, -1, 0)
  end
  save_counts(p)
  save_accounts(p)
end

-- Late calls put off later ones, by the rule of src/limit/late.rs. A worker that got no answer reports them again: they put off once.
local function put_off(p, late)
  if not late then return end
  local key = key_of(p, 'late', '')
  local stored = get(p, key)
  local newest_then, by = unpack(stored and cmsgpack.unpack(stored) or { 0, 0 })
  if late.at > newest_then then newest_then, by = newest_permit(p), 0 end
  local more = late.by - by
  if more <= 0 then return end
  put(p, key, '', not stored, 0, cmsgpack.pack({ newest_then, late.by }))
  for number, limit in ipairs(p.spec.limits) do
    local c = not limit.per_tenant and count_of(p, number, '', 0)
    if c and c.tat and not c.is_new then c.tat, c.is_charged = c.tat + more, true end
  end
  save_counts(p)
end
