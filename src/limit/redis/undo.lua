-- Takes back permits that were not used and never will be, newest first. What a limit cannot take back exactly stays charged to it.

local undone = key_of('undone', '')
-- Another epoch has forgotten them anyway; and a request that arrives twice must not free somebody else's call.
if call.epoch == epoch and not redis.call('LPOS', undone, call.nonce) then
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
    use(permit.tenant, permit.at, -1)
  end
  save_counts()
  save_accounts()
end
return { 'open', told, epoch, gate, {}, {} }
