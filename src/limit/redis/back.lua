-- Takes back permits that were not used and never will be, newest first: any question may bring some along. What a limit cannot take back
-- exactly stays charged to it.

local function take_back()
  local undone = key_of('undone', '')
  -- Another epoch has forgotten them anyway; and a request that arrives twice must not free somebody else's call.
  if #call.undo == 0 or call.undo_epoch ~= epoch or redis.call('LPOS', undone, call.nonce) then return false end
  redis.call('RPUSH', undone, call.nonce)
  redis.call('LTRIM', undone, -1000, -1)
  local recent = key_of('recent', '')
  for _, permit in ipairs(call.undo) do
    local last, _, whose = newest()
    local is_newest = last == permit.at and whose == permit.tenant
    if is_newest then redis.call('RPOP', recent) end
    for number, limit in ipairs(spec.limits) do
      local c = count_of(number, limit.per_tenant and permit.tenant or '', 0)
      if not c.is_new then
        c.shape.undo(c, permit.at, is_newest)
        c.is_charged = true
      end
    end
    use(permit.tenant, permit.at, -1, 0)
  end
  save_counts()
  save_accounts()
  return true
end

-- Calls went out late: those to come are put off, by the rule of src/limit/late.rs. Whoever gets no answer tells it again, and it puts off once.
local function put_off()
  if not call.late then return false end
  local key = key_of('late', '')
  local stored = redis.call('GET', key)
  local newest_then, by = unpack(stored and cmsgpack.unpack(stored) or { 0, 0 })
  local more = call.late.by
  if call.late.at > newest_then then newest_then, by = newest(), 0 else more = math.max(more - by, 0) end
  if more == 0 then return false end
  redis.call('SET', key, cmsgpack.pack({ newest_then, by + more }))
  keep(key, '', not stored, 0)
  for number, limit in ipairs(spec.limits) do
    local c = not limit.per_tenant and count_of(number, '', 0)
    if c and c.tat and not c.is_new then c.tat, c.is_charged = c.tat + more, true end
  end
  save_counts()
  return true
end

-- Counts are loaded once, and these are not any more what was loaded.
local was_changed = take_back()
if put_off() or was_changed then
  all, accounts = {}, {}
  for i, c in ipairs(shared) do shared[i] = count_of(c.number, '', call.most) end
end
