-- Opens what is not open: after a loss of state everything, after a change of the config what is new in it.

-- Charges what the book has, if the caller has brought it. Rows come in the order of their ends.
local function restore(is_missing, rows)
  for _, row in ipairs(rows) do
    local ledger = spec.ledgers[row.ledger]
    for number, limit in ipairs(spec.limits) do
      if limit.ledger == row.ledger and is_missing[limit.name] then
        local c = count_of(number, row.tenant, 0)
        -- Permits of before may still be used until then, and were in no sub-window that ended earlier.
        c.shape.restore(c, limit.zone > 0 and row.start or math.min(row.ends_at * 1000, now + spec.longest), row.calls)
        c.is_charged = true
      end
    end
    if is_missing['book/' .. ledger.name] and not row.counts_only then
      pay(row.ledger, row.tenant, row.ends_at, row.calls)
      account_of(row.ledger, row.tenant).subs[row.ends_at].used = row.calls
    end
  end
  save_counts()
  save_accounts()
  all, accounts = {}, {}
end

-- Says whether permits may be given. Short limits start as if used up at the last moment that a permit of before may name.
local function open()
  local is_missing, any, needs_history = {}, false, false
  for _, limit in ipairs(spec.limits) do
    if not opened[limit.name] then is_missing[limit.name], any = limit, true end
    if is_missing[limit.name] and limit.ledger > 0 then needs_history = true end
  end
  for _, ledger in ipairs(spec.ledgers) do
    if not opened['book/' .. ledger.name] then is_missing['book/' .. ledger.name], any, needs_history = ledger, true, true end
  end
  if epoch and not any then return true end
  is_changed = true
  -- The history has to have been read after the loss was seen: the token tells.
  if needs_history and (not call.history or call.token ~= (epoch or cold)) then
    if not epoch then cold = cold or call.nonce end
    return false
  end
  epoch, cold = epoch or cold or call.nonce, nil
  if needs_history then restore(is_missing, call.history) end
  local filled_at = now + spec.longest
  gate = math.max(gate, filled_at)
  for name, what in pairs(is_missing) do
    opened[name] = what.ledger == 0 and filled_at or 0
  end
  for number, limit in ipairs(spec.limits) do
    if is_missing[limit.name] and limit.ledger == 0 and not limit.per_tenant then
      local c = count_of(number, '', 0)
      gate = math.max(gate, c.shape.earliest(c, now))
    end
  end
  all = {}
  redis.call('SADD', base .. 'own', key_of('recent', ''), key_of('undone', ''))
  return true
end

read_state()
if not edges_fit() then return { 'edges', told, '', 0, {}, {} } end
if call.close then
  gate = math.max(gate, now + call.close)
  redis.call('PUBLISH', call.channel, spec.pool .. ' ' .. digits(gate))
end
local is_open = open()
save_state()
if not is_open then return { 'cold', told, epoch or cold, gate, {}, {} } end
for number, limit in ipairs(spec.limits) do
  if limit.per_tenant then
    personal[#personal + 1] = number
  else
    shared[#shared + 1] = count_of(number, '', call.most)
  end
end
